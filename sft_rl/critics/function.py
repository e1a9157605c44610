"""A user's own reward in the critic's place: fine-tuning by reward, as DDPO does."""

from collections.abc import Callable

import torch
from torch import Tensor

from sft_rl.critics.base import Critic
from sft_rl.errors import UserError
from sft_rl.types import Loss


class FunctionCritic(Critic):
    """Scores by a function that nobody trains.

    Args:
        function: Maps samples (B, *shape) in model units, and labels (B,) if there are classes,
            to scores (B,), a tensor or an array.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, *labels: Tensor) -> Tensor:
        """Score samples (B, *shape), shape (B,).

        Raises:
            UserError: If the function returns another shape or numbers not finite.
        """
        return checked_scores(self.function(x, *labels), x)

    def loss(
        self, real: Tensor, generated: Tensor, generator: torch.Generator, *labels: Tensor
    ) -> Loss:
        """Nothing to train; watch the gap."""
        with torch.no_grad():
            gap = self(real, *labels).mean() - self(generated, *labels).mean()
        return Loss(gap, {"critic_gap": gap})


def checked_scores(scores: Tensor, samples: Tensor) -> Tensor:
    """Check what a reward function returned for samples (B, *shape).

    Raises:
        UserError: If the shape is not (B,) or a score is not finite.
    """
    scores = torch.as_tensor(scores, device=samples.device)
    if scores.shape != samples.shape[:1]:
        raise UserError(
            f"reward: returned shape {tuple(scores.shape)} for {len(samples)} samples, "
            f"expected ({len(samples)},)"
        )
    if not torch.isfinite(scores).all():
        raise UserError("reward: returned scores that are not finite")
    return scores.float()
