r"""The sliced Wasserstein-2 distance without its noise floor.

The distance between two finite draws of one distribution is not 0 but a floor, which hides what
is smaller. Here both sides come in independent batches of n points. Let A_i be the sorted
projections of a generated batch, R_j those of a real one; their means over m and k batches
estimate the same quantiles if the distributions are the same, and

.. math::
    |\bar A - \bar R|^2 - \mathrm{tr\,var}(A)/m - \mathrm{tr\,var}(R)/k

is unbiased for the squared distance between the *expected* sorted projections of n points. That
is 0 for equal distributions, and for others the squared distance but for what n points blur.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray
MAX_BATCH = 1024
MIN_BATCHES = 8
"""Fewer batches would leave the standard error to chance."""


def batch_size(*numbers: int) -> int:
    """Points in a batch, the same on both sides, where there are these numbers of points."""
    return min(MAX_BATCH, *(number // MIN_BATCHES for number in numbers))


def sorted_batches(points: Array, directions: Array, *, size: int, num_groups: int = 0) -> Array:
    """Sorted projections of points (N, dim) in batches of `size`; a rest of them is left out.

    Args:
        points: Independent draws.
        directions: Unit vectors (dim, L).
        size: Points in a batch.
        num_groups: Average the batches in so many groups of as many; 0 leaves them single.

    Returns:
        float32, shape (batches or groups, L * size).
    """
    batches = points[: len(points) // size * size].reshape(-1, size, points.shape[1])
    if num_groups:
        batches = batches[: len(batches) // num_groups * num_groups]
    per_group = len(batches) // num_groups if num_groups else 1
    rows = []
    for start in range(0, len(batches), per_group):
        projected = np.sort(np.swapaxes(batches[start : start + per_group] @ directions, 1, 2))
        rows.append(projected.mean(axis=0).astype(np.float32).ravel())
    return np.stack(rows)


def excess_squared(real: Array, generated: Array) -> tuple[float, float]:
    """Unbiased squared distance of :func:`sorted_batches`, and its jackknife standard error.

    The error holds the noise of both sides: each is deleted batch by batch. Near zero, where the
    estimate is a square of noise, it is up to a half too large.
    """
    difference = generated.mean(axis=0, dtype=np.float64) - real.mean(axis=0, dtype=np.float64)
    squared = float(np.mean(difference**2))
    variance = 0.0
    for sign, batches in ((1.0, generated), (-1.0, real)):
        own_noise, without = _without_each(batches, sign * difference)
        squared -= own_noise
        spread = np.square(without - without.mean()).sum()
        variance += (len(batches) - 1) / len(batches) * float(spread)
    return squared, float(np.sqrt(variance))


def excess(real: Array, generated: Array) -> tuple[float, float]:
    """Signed root of :func:`excess_squared` and half the width of its interval of one error.

    The interval's ends are the signed roots of the squared ones. A negative number is 0 but for
    noise.
    """
    squared, error = excess_squared(real, generated)
    low, high = _signed_root(squared - error), _signed_root(squared + error)
    return _signed_root(squared), (high - low) / 2.0


def _without_each(batches: Array, difference: Array) -> tuple[float, Array]:
    """The noise of a mean over batches, and how leaving out each one changes the estimate.

    Args:
        batches: Shape (m, D).
        difference: This side's mean minus the other's, (D,).

    Returns:
        tr var / m; the estimates without each, up to what they share, (m,).
    """
    m = len(batches)
    mean = batches.mean(axis=0, dtype=np.float64)
    deviations = [row - mean for row in batches]
    squares = np.array([np.mean(row**2) for row in deviations])
    products = np.array([np.mean(row * difference) for row in deviations])
    total = squares.sum()
    moved = -2.0 * products / (m - 1) + squares / (m - 1) ** 2
    noise_without = (total - squares * m / (m - 1)) / ((m - 1) * (m - 2))
    return float(total / (m * (m - 1))), moved - noise_without


def _signed_root(squared: float) -> float:
    return float(np.sign(squared) * np.sqrt(abs(squared)))
