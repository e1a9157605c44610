"""A critic of one's own: least squares instead of an integral probability metric.

Run it from the repository's root:

    sft-rl train swiss_roll critic.objective=examples.own_critic:LeastSquaresCritic options.width=64
"""

import math

import torch
from torch import Tensor, nn

from sft_rl import Critic, Loss, Section


class LeastSquaresOptions(Section):
    """Settings of its own: typed, checked, saved with the run, searched by `sft-rl tune`."""

    width: int = 128
    """Units of the hidden layer."""


class LeastSquaresCritic(Critic):
    """Learns to score real samples 1 and generated ones 0 (Mao et al., 2017)."""

    Options = LeastSquaresOptions

    def __init__(self, options: LeastSquaresOptions, shape: tuple[int, ...]) -> None:
        super().__init__()
        width = options.width
        self.network = nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(shape), width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, x: Tensor, *labels: Tensor) -> Tensor:
        """Score samples (B, *shape), shape (B,)."""
        return self.network(x).squeeze(-1)  # type: ignore[no-any-return]

    def loss(
        self, real: Tensor, generated: Tensor, generator: torch.Generator, *labels: Tensor
    ) -> Loss:
        """Return the mean squared error of the scores, and the gap to watch."""
        of_real, of_generated = self(real), self(generated)
        value = (of_real - 1.0).square().mean() + of_generated.square().mean()
        gap = (of_real.mean() - of_generated.mean()).detach()
        return Loss(value, {"critic_loss": value.detach(), "critic_gap": gap})
