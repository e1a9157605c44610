"""Several critics that score together."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sft_rl.critics.base import Critic
from sft_rl.storage.state import State
from sft_rl.types import Loss


class Several(Critic):
    """The mean score of critics that start from different weights and learn apart.

    What a policy can gain from the peculiarities of one critic falls with their number, and so
    does what hangs on one start (generative multi-adversarial networks, Durugkar et al., 2017).

    Args:
        critics: All of one kind.
    """

    def __init__(self, critics: Sequence[Critic]) -> None:
        super().__init__()
        self.critics = nn.ModuleList(critics)
        self.differentiates_twice = critics[0].differentiates_twice

    @property
    def called(self) -> tuple[Critic, ...]:
        """The critics."""
        return tuple(self.critics)  # type: ignore[arg-type]

    def forward(self, x: Tensor, *labels: Tensor) -> Tensor:
        """Score samples (B, *shape), shape (B,)."""
        return torch.stack([critic(x, *labels) for critic in self.called]).mean(dim=0)

    def loss(
        self, real: Tensor, generated: Tensor, generator: torch.Generator, *labels: Tensor
    ) -> Loss:
        """Return the sum of their losses, by which each learns as alone; means of their metrics."""
        losses = [critic.loss(real, generated, generator, *labels) for critic in self.called]
        names = losses[0].metrics
        return Loss(
            torch.stack([loss.value for loss in losses]).sum(),
            {name: sum(loss.metrics[name] for loss in losses) / len(losses) for name in names},
        )

    def after_step(self) -> None:
        """Restore the critics' constraints after an optimiser step."""
        for critic in self.called:
            critic.after_step()

    def state(self) -> State:
        """What each critic declares beside its network."""
        states = [critic.state() for critic in self.called]
        return {f"{i}.{name}": v for i, state in enumerate(states) for name, v in state.items()}

    def load_state(self, state: State) -> None:
        """Undo :meth:`state`."""
        for i, critic in enumerate(self.called):
            own = f"{i}."
            critic.load_state(
                {n.removeprefix(own): v for n, v in state.items() if n.startswith(own)}
            )
