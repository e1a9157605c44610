"""Critics without a network: the optimal witness of a distance, from the last batches."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from sft_rl.critics.base import Critic
from sft_rl.types import Loss


class _BatchCritic(Critic):
    """Keeps the last batch of each kind, as buffers."""

    real: Tensor
    generated: Tensor

    def __init__(self, batch_size: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        dim = math.prod(shape)
        self.register_buffer("real", torch.zeros(batch_size, dim))
        self.register_buffer("generated", torch.zeros(batch_size, dim))

    @torch.no_grad()
    def loss(
        self, real: Tensor, generated: Tensor, generator: torch.Generator, *labels: Tensor
    ) -> Loss:
        """Store the batches; nothing to step."""
        self.real, self.generated = real.flatten(1), generated.flatten(1)
        gap = self(real).mean() - self(generated).mean()
        return Loss(gap, {"critic_gap": gap})


class MMDCritic(_BatchCritic):
    r"""Witness of the maximum mean discrepancy (Gretton et al., 2012).

    f(x) = E_real k(x, y) - E_gen k(x, y), with a sum of rational quadratic kernels
    ``s / (s + |x - y|^2)`` of several scales s, whose gradients reach far.
    """

    scales: Iterable[float] = (0.01, 0.05, 0.2, 1.0, 4.0)

    def forward(self, x: Tensor, *labels: Tensor) -> Tensor:
        """Score samples (B, *shape), shape (B,)."""
        flat = x.flatten(1)
        return self._kernel(flat, self.real).mean(1) - self._kernel(flat, self.generated).mean(1)

    def _kernel(self, x: Tensor, y: Tensor) -> Tensor:
        squared = (x[:, None] - y[None]).square().sum(-1)
        return torch.stack([s / (s + squared) for s in self.scales]).mean(0)


class SlicedWassersteinCritic(_BatchCritic):
    r"""Minus the Kantorovich potential of the sliced Wasserstein-2 distance.

    Along one direction optimal transport T maps the i-th smallest generated point to the i-th
    smallest real one: T(p) = p - phi'(p), with phi the potential for the cost |x - y|^2 / 2. So the
    slope of f = -phi is the way to go, f'(p) = T(p) - p. The score is the mean of f over fixed
    directions: it is higher towards the data, and its gradient moves a sample along the sliced
    transport (Bonneel et al., 2015).
    """

    directions: Tensor

    def __init__(self, batch_size: int, shape: tuple[int, ...], *, num_projections: int) -> None:
        super().__init__(batch_size, shape)
        source = torch.Generator().manual_seed(0)
        directions = torch.randn(math.prod(shape), num_projections, generator=source)
        self.register_buffer("directions", directions / directions.norm(dim=0))

    def forward(self, x: Tensor, *labels: Tensor) -> Tensor:
        """Score samples (B, *shape), shape (B,)."""
        knots = (self.generated @ self.directions).sort(0).values.T.contiguous()
        slopes = (self.real @ self.directions).sort(0).values.T - knots
        # Integrate the piecewise linear slope; constant beyond the ends.
        areas = 0.5 * (slopes[:, 1:] + slopes[:, :-1]) * knots.diff(dim=1)
        at_knots = torch.cat([areas.new_zeros(len(areas), 1), areas.cumsum(1)], dim=1)
        points = (x.flatten(1) @ self.directions).T.contiguous()
        left = torch.searchsorted(knots, points.detach()).sub(1).clamp(0, knots.shape[1] - 2)
        start, end = knots.gather(1, left), knots.gather(1, left + 1)
        step, width = points - start, (end - start).clamp_min(1e-12)
        linear = slopes.gather(1, left)
        rise = slopes.gather(1, left + 1) - linear
        # Beyond the first and the last knot the slope stays that of the end.
        inside = linear * step + 0.5 * rise * step.square() / width
        beyond = (linear + 0.5 * rise) * width + (linear + rise) * (step - width)
        area = torch.where(step < 0, linear * step, torch.where(step > width, beyond, inside))
        return (at_knots.gather(1, left) + area).mean(0)
