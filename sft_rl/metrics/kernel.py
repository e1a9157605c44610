"""The kernel distance of features: unbiased at any number of samples, in bounded memory."""

from __future__ import annotations

import numpy as np

from sft_rl.metrics.estimates import Estimate

Array = np.ndarray
MAX_BLOCK = 2**20
"""Entries of the kernel's matrix that are held at once: 8 MB."""


class KernelTo:
    """Unbiased MMD^2 to one set of features under the cubic kernel (x.y / dim + 1)^3.

    The kernel distance of Binkowski et al. (2018) in whatever features are given, from all pairs.
    Its expectation is 0 for equal distributions however few the samples are, so it needs no floor;
    it can fall below 0 by noise.

    Args:
        real: Features (M, dim).
    """

    def __init__(self, real: Array) -> None:
        self.real = real
        self._within = _mean_of_others(real)

    def __call__(self, generated: Array) -> Estimate:
        """Distance of features (N, dim)."""
        within, (to_generated, to_real) = _mean_of_others(generated), _cross(self.real, generated)
        value = self._within.mean() + within.mean() - 2.0 * to_real.mean()
        # A sample stands in both places of the kernel: twice its mean over partners.
        real, own = 2.0 * (self._within - to_generated), 2.0 * (within - to_real)
        return Estimate(float(value), real - real.mean(), own - own.mean())


def _mean_of_others(x: Array) -> Array:
    """Mean kernel of each of x (N, dim) with all others, shape (N,)."""
    itself = (np.square(x).sum(axis=1) / x.shape[1] + 1.0) ** 3
    return np.asarray((_cross(x, x)[0] * len(x) - itself) / max(len(x) - 1, 1))


def _cross(x: Array, y: Array) -> tuple[Array, Array]:
    """Mean kernel of each of x (M, dim) with all y (N, dim), (M,), and of each y with all x, (N,).

    In blocks of rows, so that memory grows with M + N only.
    """
    rows, columns = np.empty(len(x)), np.zeros(len(y))
    size = max(MAX_BLOCK // len(y), 1)
    for start in range(0, len(x), size):
        block = x[start : start + size] @ y.T
        block /= x.shape[1]
        block += 1.0
        block *= block * block
        rows[start : start + size] = block.mean(axis=1)
        columns += block.sum(axis=0)
    return rows, columns / len(x)
