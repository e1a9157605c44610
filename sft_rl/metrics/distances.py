"""Distances between two sets of points, in the data's own units."""

from collections.abc import Callable

import numpy as np

Array = np.ndarray


class SlicedWassersteinTo:
    """Sliced Wasserstein-2 distance to one set of points, from as many, by sorting.

    The number of ``ot.sliced_wasserstein_distance`` with the same projections and seed, which
    takes a more general way and ten times as long.

    Args:
        real: Points (N, dim).
        num_projections: Number of random directions.
        seed: Seed of the directions.
    """

    def __init__(self, real: Array, *, num_projections: int, seed: int) -> None:
        points = flat(real)
        self.directions = directions(points.shape[1], num_projections, seed)
        self.real = self._projected(points)

    def __call__(self, generated: Array) -> float:
        """Distance of points (N, dim), as many as there are real ones."""
        difference = self._projected(flat(generated)) - self.real
        return float(np.sqrt(np.mean(difference**2)))

    def _projected(self, points: Array) -> Array:
        """Sorted projections, shape (num_projections, N)."""
        return np.sort(np.ascontiguousarray((points @ self.directions).T), axis=1)


def sliced_wasserstein(real: Array, generated: Array, *, num_projections: int, seed: int) -> float:
    """Sliced Wasserstein-2 distance, fixed projections; of a larger set as many first ones."""
    num = min(len(real), len(generated))
    distance = SlicedWassersteinTo(real[:num], num_projections=num_projections, seed=seed)
    return distance(generated[:num])


def directions(dim: int, num: int, seed: int) -> Array:
    """Random directions, unit vectors (dim, num); those of POT for the same seed."""
    drawn = np.random.RandomState(seed).randn(dim, num)
    return np.asarray(drawn / np.sqrt(np.sum(drawn**2, axis=0, keepdims=True)))


def earth_movers(real: Array, generated: Array) -> float:
    """Exact Wasserstein-1 distance (Euclidean cost); of a larger set as many first points.

    Between as many points each an optimal plan is an assignment (Birkhoff and von Neumann). An
    optimal transport library would cost every run the seconds that its import takes.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    num = min(len(real), len(generated))
    cost = cdist(flat(real[:num]), flat(generated[:num]))
    return float(cost[linear_sum_assignment(cost)].mean())


def mmd(real: Array, generated: Array) -> float:
    """Maximum mean discrepancy, a sum of Gaussian kernels, unbiased estimate of MMD^2.

    Bandwidths are 0.1, 0.3, 1 and 3 times the median distance between real points, so the number
    has no unit. It can fall slightly below zero.
    """
    from scipy.spatial.distance import cdist

    x, y = flat(real), flat(generated)
    xx, yy, xy = (cdist(a, b, "sqeuclidean") for a, b in ((x, x), (y, y), (x, y)))
    median = np.median(xx[xx > 0])

    def kernel(squared: Array) -> Array:
        return np.asarray(sum(np.exp(-squared / (2 * s**2 * median)) for s in (0.1, 0.3, 1.0, 3.0)))

    def off_diagonal(k: Array) -> float:
        return float((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)))

    return off_diagonal(kernel(xx)) + off_diagonal(kernel(yy)) - 2.0 * float(kernel(xy).mean())


def noise_floor(distance: Callable[[Array, Array], float], draws: list[Array]) -> float:
    """Distance between real data and real data: the mean over draws against the first."""
    return float(np.mean([distance(draws[0], other) for other in draws[1:]]))


def flat(points: Array) -> Array:
    """Samples (N, *shape) as float64 (N, dim)."""
    return points.reshape(len(points), -1).astype(np.float64)
