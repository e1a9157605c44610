"""Classifier-free guidance."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Guided(nn.Module):
    r"""Two calls of a network as one prediction, away from the one without a class.

    .. math:: F = F(x_t, \varnothing) + w\,(F(x_t, c) - F(x_t, \varnothing))

    (Ho and Salimans, 2022). It holds for every prediction: each is an affine map of every other.

    Args:
        network: Takes labels.
        scale: w; 1 is the network itself.
        null_label: The label that stands for no class.
    """

    def __init__(self, network: nn.Module, *, scale: float, null_label: int) -> None:
        super().__init__()
        self.network = network
        self.scale = scale
        self.null_label = null_label

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Map latents x (..., *shape) at times t and labels, both broadcastable to (...)."""
        labels = labels.expand((labels + t).shape)
        both = torch.stack([labels, torch.full_like(labels, self.null_label)])
        with_class, without = self.network(x.expand(2, *x.shape), t, both)
        return without + self.scale * (with_class - without)  # type: ignore[no-any-return]
