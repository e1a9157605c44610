"""The MDP itself, batched, in torch: what the scalar and the vector env share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sft_rl.critics.function import checked_scores
from sft_rl.seeding import normal_rows

RewardFunction = Callable[[Tensor], Tensor]
"""Maps final samples (B, *shape) to scores (B,)."""


class DenoisingProcess:
    """B denoising episodes that advance and end together.

    Row i draws its starting noise from its own seed, so a batch of one gives the same episode
    as the same row of a large batch.

    Args:
        num_rows: Number of episodes B.
        num_steps: Number of denoising steps T.
        shape: Shape of one sample.
        reward: Scores final samples; None pays nothing (the learner scores them itself).
        device: Where the latents live.
    """

    def __init__(
        self,
        *,
        num_rows: int,
        num_steps: int,
        shape: tuple[int, ...],
        reward: RewardFunction | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_rows = num_rows
        self.num_steps = num_steps
        self.shape = shape
        self.reward = reward
        self.latents = torch.zeros(num_rows, *shape, device=device)
        self.step_index = 0
        self._episode = -1
        self._seeds = torch.zeros(num_rows, dtype=torch.int64, device=device)

    def seed(self, seeds: Tensor) -> None:
        """Give every row its seed, int64, shape (B,); the next episode is their first."""
        self._seeds = seeds.to(self.latents.device)
        self._episode = -1

    def restart(self) -> None:
        """Start the next episode from fresh noise N(0, I)."""
        self._episode += 1
        self.latents = normal_rows(self._seeds, self._episode, self.shape)
        self.step_index = 0

    def advance(self, next_latents: Tensor) -> bool:
        """Take one denoising step; return whether the episodes ended."""
        assert self.step_index < self.num_steps, "the episodes have ended"
        self.latents = next_latents
        self.step_index += 1
        return self.step_index == self.num_steps

    def score(self) -> Tensor:
        """Score the final samples, shape (B,).

        Raises:
            UserError: If the reward function returns another shape or numbers not finite.
        """
        if self.reward is None:
            return self.latents.new_zeros(self.num_rows)
        return checked_scores(self.reward(self.latents), self.latents)
