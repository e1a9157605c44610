"""The Fréchet distance of features, its error, and what it tends to with more samples."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from sft_rl.metrics.estimates import Estimate

Array = np.ndarray
TINY = 1e-12
"""Share of the largest eigenvalue below which a direction counts as without variance."""


class Gaussian(NamedTuple):
    """The Gaussian fitted to features: mean (dim,), covariance (dim, dim), float64."""

    mu: Array
    sigma: Array

    @classmethod
    def fit(cls, features: Array) -> Gaussian:
        """Mean and unbiased covariance of features (N, dim)."""
        return cls(features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)))


class FrechetTo:
    r"""Fréchet distance of fitted Gaussians to one that is fitted once.

    .. math::
        |\mu_1 - \mu_2|^2 + \mathrm{tr}\bigl(C_1 + C_2 - 2 (C_1 C_2)^{1/2}\bigr)

    The trace of the root is the sum of the roots of the eigenvalues of C_1^{1/2} C_2 C_1^{1/2}.
    Its gradient by C_2 is I - T with the optimal map T from the second Gaussian to the first, and
    the other way round, which gives the influence of each sample.

    Args:
        gaussian: That of the real features.
        features: The real features (M, dim); none if the Gaussian is taken for exact.
    """

    def __init__(self, gaussian: Gaussian, features: Array | None = None) -> None:
        self.gaussian = gaussian
        self.features = np.empty((0, len(gaussian.mu))) if features is None else features
        self._root, self._inverse_root = _roots(gaussian.sigma)

    @classmethod
    def of(cls, features: Array) -> FrechetTo:
        """The distance to real features (M, dim)."""
        return cls(Gaussian.fit(features), features)

    def __call__(self, generated: Array) -> Estimate:
        """Distance of features (N, dim), biased upwards by about a constant over N."""
        mu_1, other = self.gaussian.mu, Gaussian.fit(generated)
        crossed, inverse = _roots(self._root @ other.sigma @ self._root)
        to_first = self._root @ inverse @ self._root
        to_second = self._inverse_root @ crossed @ self._inverse_root
        return Estimate(
            self._value(other, float(np.trace(crossed))),
            _influence(self.features - mu_1, mu_1 - other.mu, to_second),
            _influence(generated - other.mu, other.mu - mu_1, to_first),
        )

    def at_infinity(self, whole: Estimate, generated: Array) -> Estimate:
        """The same extrapolated to infinitely many samples on both sides.

        A fit of the distance against 1 / N (Chong and Forsyth, 2020), from all samples and from
        both halves of them: twice the distance less the mean of the halves'. The influences are
        those of the distance.

        Args:
            whole: The distance of all features.
            generated: Features (N, dim).
        """
        halves = [half.value(generated[part::2]) for part, half in enumerate(self._halves)]
        return whole.at(2.0 * whole.value - float(np.mean(halves)))

    def value(self, generated: Array) -> float:
        """The distance alone, which is quicker, of features (N, dim)."""
        other = Gaussian.fit(generated)
        crossed = np.linalg.eigvalsh(self._root @ other.sigma @ self._root)
        return self._value(other, float(np.sqrt(crossed.clip(0.0)).sum()))

    def _value(self, other: Gaussian, trace_of_root: float) -> float:
        (mu_1, sigma_1), (mu_2, sigma_2) = self.gaussian, other
        traces = np.trace(sigma_1) + np.trace(sigma_2) - 2.0 * trace_of_root
        return float(np.square(mu_1 - mu_2).sum() + traces)

    @cached_property
    def _halves(self) -> list[FrechetTo]:
        if not len(self.features):
            return [self, self]
        return [FrechetTo.of(self.features[part::2]) for part in (0, 1)]


def _roots(matrix: Array) -> tuple[Array, Array]:
    """Root of a symmetric positive matrix, and the root of its inverse where it has one."""
    values, vectors = np.linalg.eigh(matrix)
    roots = np.sqrt(values.clip(0.0))
    inverse = np.divide(1.0, roots, where=values > TINY * values[-1], out=np.zeros_like(roots))
    return vectors * roots @ vectors.T, vectors * inverse @ vectors.T


def _influence(centred: Array, shift: Array, transport: Array) -> Array:
    """Influence of samples less their mean (N, dim), which lies `shift` from the other mean."""
    linear = 2.0 * centred @ shift
    quadratic = np.einsum("ni,ni->n", centred, centred - centred @ transport)
    return np.asarray(linear + quadratic - (quadratic.mean() if len(quadratic) else 0.0))
