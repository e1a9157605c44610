"""A critic of pictures that scores their latents."""

import torch
from torch import Tensor

from sft_rl.config import Latents
from sft_rl.critics.base import Critic
from sft_rl.data.autoencoder import at_once, decoded
from sft_rl.storage.state import State
from sft_rl.types import Loss


class InPixels(Critic):
    """Sees what a frozen autoencoder decodes; differentiable in the latents.

    Real samples are decoded latents, too: what the autoencoder leaves out of pictures, which no
    policy could bring back, tells nothing apart. Penalties are of gradients by pixels.

    Args:
        critic: Scores pictures of about -1..1, shape (B, C, H, W).
        latents: The autoencoder.
    """

    def __init__(self, critic: Critic, latents: Latents) -> None:
        super().__init__()
        self.critic = critic
        self.latents = latents

    @property
    def called(self) -> tuple[Critic, ...]:
        """The critic of pictures."""
        return self.critic.called

    @property
    def at_once(self) -> int:
        """How many pictures' activations are there at once for a gradient."""
        return at_once(self.latents)

    def forward(self, x: Tensor, *labels: Tensor) -> Tensor:
        """Score latents (B, *shape), shape (B,)."""
        return self.critic(decoded(self.latents, x), *labels)  # type: ignore[no-any-return]

    def loss(
        self, real: Tensor, generated: Tensor, generator: torch.Generator, *labels: Tensor
    ) -> Loss:
        """Compare a batch of decoded real latents with one of generated ones."""
        with torch.no_grad():
            seen, made = (decoded(self.latents, x) for x in (real, generated))
        return self.critic.loss(seen, made, generator, *labels)

    def after_step(self) -> None:
        """Restore the critic's constraints after an optimiser step."""
        self.critic.after_step()

    def state(self) -> State:
        """What the critic declares beside its network."""
        return self.critic.state()

    def load_state(self, state: State) -> None:
        """Undo :meth:`state`."""
        self.critic.load_state(state)
