"""Distances between two sets of points, in the data's own units."""

from collections.abc import Callable

import numpy as np

Array = np.ndarray


def sliced_wasserstein(real: Array, generated: Array, *, num_projections: int, seed: int) -> float:
    """Sliced Wasserstein-2 distance by POT, fixed projections, points (N, dim) each."""
    import ot

    return float(
        ot.sliced_wasserstein_distance(
            _flat(real), _flat(generated), n_projections=num_projections, p=2, seed=seed
        )
    )


class SlicedWassersteinTo:
    """The same distance to one set of points, from as many: quick enough to watch a run by.

    POT takes a general way that costs 1 s where sorting costs 0.1 s. What is reported comes from
    :func:`sliced_wasserstein`.

    Args:
        real: Points (N, dim).
        num_projections: Number of random directions.
        seed: Seed of the directions.
    """

    def __init__(self, real: Array, *, num_projections: int, seed: int) -> None:
        from ot.sliced import get_random_projections

        points = _flat(real)
        self.directions = get_random_projections(points.shape[1], num_projections, seed)
        self.real = self._projected(points)

    def __call__(self, generated: Array) -> float:
        """Distance of points (N, dim), as many as there are real ones."""
        difference = self._projected(_flat(generated)) - self.real
        return float(np.sqrt(np.mean(difference**2)))

    def _projected(self, points: Array) -> Array:
        """Sorted projections, shape (num_projections, N)."""
        return np.sort(np.ascontiguousarray((points @ self.directions).T), axis=1)


def earth_movers(real: Array, generated: Array) -> float:
    """Exact Wasserstein-1 distance (Euclidean cost) by POT, points (N, dim) each."""
    import ot

    cost = ot.dist(_flat(real), _flat(generated), metric="euclidean")
    return float(ot.emd2([], [], cost, numItermax=1_000_000))


def mmd(real: Array, generated: Array) -> float:
    """Maximum mean discrepancy, a sum of Gaussian kernels, unbiased estimate of MMD^2.

    Bandwidths are 0.1, 0.3, 1 and 3 times the median distance between real points, so the number
    has no unit. It can fall slightly below zero.
    """
    from scipy.spatial.distance import cdist

    x, y = _flat(real), _flat(generated)
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


def _flat(points: Array) -> Array:
    return points.reshape(len(points), -1).astype(np.float64)
