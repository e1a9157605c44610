"""The Fréchet distance of features, its error, and what it tends to with more samples."""

from __future__ import annotations

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
        (mu_1, sigma_1), (mu_2, sigma_2) = self.gaussian, Gaussian.fit(generated)
        crossed, inverse = _roots(self._root @ sigma_2 @ self._root)
        value = np.square(mu_1 - mu_2).sum() + np.trace(sigma_1 + sigma_2) - 2.0 * np.trace(crossed)
        to_first = self._root @ inverse @ self._root
        to_second = self._inverse_root @ crossed @ self._inverse_root
        return Estimate(
            float(value),
            _influence(self.features - mu_1, mu_1 - mu_2, to_second),
            _influence(generated - mu_2, mu_2 - mu_1, to_first),
        )

    def at_infinity(self, generated: Array) -> Estimate:
        """The same extrapolated to infinitely many samples on both sides.

        A fit of the distance against 1 / N (Chong and Forsyth, 2020), from all samples and from
        both halves of them: twice the distance less the mean of the halves'. The influences are
        those of the distance.
        """
        whole = self(generated)
        halves = [self._half(part)(generated[part::2]).value for part in (0, 1)]
        return whole.at(2.0 * whole.value - float(np.mean(halves)))

    def _half(self, part: int) -> FrechetTo:
        return FrechetTo.of(self.features[part::2]) if len(self.features) else self


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
