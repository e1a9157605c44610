r"""A distance with its error, and the difference of two distances with the error of the pair.

A distance of two sets moves by psi(x) / N to first order if one more copy of sample x counts among
its N. With these influences psi of mean zero

.. math::
    \mathrm{se}^2 = \mathrm{var}(\psi_\mathrm{real}) / M + \mathrm{var}(\psi_\mathrm{generated}) / N

which is what a bootstrap over both sets scatters by, without the resampling (the infinitesimal
jackknife; Efron and Tibshirani, 1993, chapter 21). Of two samplers that are compared with the same
real samples, and drew from the same noise, the influences are subtracted sample by sample first:
what both share does not blur their difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from sft_rl.types import Metrics

Array = np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A distance between real and generated samples.

    Attributes:
        value: The distance.
        real: Influence of each real sample, shape (M,); empty if the real side is exact.
        generated: Influence of each generated sample, shape (N,).
    """

    value: float
    real: Array
    generated: Array

    @property
    def error(self) -> float:
        """Standard error; near zero, where a squared distance is degenerate, somewhat too large."""
        return float(np.sqrt(_variance(self.real) + _variance(self.generated)))

    def minus(self, other: Estimate) -> Estimate:
        """The difference to another sampler's distance from the same real samples.

        Its `error` is that of the pair: row i of both sides came from the same noise.

        Raises:
            ValueError: If the numbers of samples differ.
        """
        if (len(self.real), len(self.generated)) != (len(other.real), len(other.generated)):
            raise ValueError(
                f"a pair needs equal numbers of samples, got {len(self.real)} real and "
                f"{len(self.generated)} generated, and {len(other.real)} and {len(other.generated)}"
            )
        return Estimate(
            self.value - other.value, self.real - other.real, self.generated - other.generated
        )

    def at(self, value: float) -> Estimate:
        """The same influences for a value that differs in higher order only."""
        return replace(self, value=value)


Estimates = Mapping[str, Estimate]


@dataclass(frozen=True)
class Measured:
    """What is measured of a sampler.

    Attributes:
        numbers: Every metric, and as ``NAME_se`` the standard errors that are known.
        estimates: The metrics whose difference between two samplers has an error.
    """

    numbers: Metrics
    estimates: Estimates = field(default_factory=dict)

    def less(self, other: Estimates, name: str) -> Metrics:
        """Differences ``METRIC_less_NAME`` to another sampler's estimates, and their errors."""
        differences: Metrics = {}
        for metric, estimate in self.estimates.items():
            if metric in other:
                difference = estimate.minus(other[metric])
                differences |= with_errors({f"{metric}_less_{name}": difference})
        return differences


def with_errors(estimates: Estimates) -> Metrics:
    """Values by their names, and as ``NAME_se`` their standard errors."""
    numbers: Metrics = {}
    for name, estimate in estimates.items():
        numbers |= {name: estimate.value, f"{name}_se": estimate.error}
    return numbers


def _variance(influences: Array) -> float:
    """Variance of the mean of influences; of none 0."""
    return float(np.var(influences, ddof=1)) / len(influences) if len(influences) > 1 else 0.0
