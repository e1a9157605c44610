"""Scores of a term brought to mean 0 and standard deviation 1, by what was seen so far."""

from __future__ import annotations

import torch
from torch import Tensor


class Normaliser:
    """An affine map of scores, constant between two calls of :meth:`observe`.

    Args:
        kind: ``none``; ``batch``, the newest batch's mean and standard deviation; ``running``,
            those of all scores so far; ``per_label``, those of all scores so far of a class.
        num_classes: Number of classes, for ``per_label``.
        device: Where the scores are.
    """

    def __init__(self, kind: str, *, num_classes: int = 0, device: torch.device | str = "cpu"):
        self.kind = kind
        num = num_classes if kind == "per_label" else 1
        # Count, mean and sum of squared deviations of each group, in double precision.
        self.moments = torch.zeros(3, num, dtype=torch.float64, device=device)

    def __call__(self, scores: Tensor, *labels: Tensor) -> Tensor:
        """Map scores (B,) of samples with labels (B,)."""
        if self.kind == "none":
            return scores
        count, mean, squares = self.moments
        std = (squares / (count - 1).clamp(min=1)).sqrt()
        # Scores that do not vary say nothing of their scale, nor does a single one.
        scale = torch.where(std > 1e-12 * (1.0 + mean.abs()), std, 1.0)
        group = self._groups(scores, labels)
        shift, spread = mean[group].to(scores.dtype), scale[group].to(scores.dtype)
        return torch.div(scores - shift, spread)

    @torch.no_grad()
    def observe(self, scores: Tensor, *labels: Tensor) -> None:
        """Take a batch of scores (B,) into account."""
        if self.kind == "none":
            return
        if self.kind == "batch":
            self.moments.zero_()
        scores, groups = scores.double(), self._groups(scores, labels)
        for group in torch.unique(groups).tolist():
            some = scores[groups == group]
            self.moments[:, group] = _joined(self.moments[:, group], some)

    def _groups(self, scores: Tensor, labels: tuple[Tensor, ...]) -> Tensor:
        if self.kind == "per_label":
            return labels[0]
        return torch.zeros(len(scores), dtype=torch.int64, device=scores.device)


def _joined(moments: Tensor, scores: Tensor) -> Tensor:
    """Count, mean and squared deviations of what was seen before and some more (Chan, 1979)."""
    count, mean, squares = moments
    num, own = len(scores), scores.mean()
    total, shift = count + num, own - mean
    squares = squares + (scores - own).square().sum() + shift.square() * count * num / total
    return torch.stack([total, mean + shift * num / total, squares])
