"""A critic of one's own: least squares instead of an integral probability metric.

Run it from the repository's root:

    sft-rl train swiss_roll critic.objective=examples.own_critic:LeastSquaresCritic
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from sft_rl.critics import Critic
from sft_rl.types import Loss


class LeastSquaresCritic(Critic):
    """Learns to score real samples 1 and generated ones 0 (Mao et al., 2017)."""

    def __init__(self, options: Any, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(shape), 128), nn.SiLU(), nn.Linear(128, 1)
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
