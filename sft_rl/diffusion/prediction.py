r"""What a network predicts at a level of a Gaussian path. The conversions stand here, once.

Every prediction is a mixture of the data and of the noise in
:math:`x_t = \alpha x_0 + \sigma \epsilon`,

.. math:: F = a\, x_0 + b\, \epsilon ,

so that :math:`(x_t, F)` give back both, by the inverse of a matrix of determinant
:math:`\alpha b - \sigma a`:

.. math::
    x_0 = \frac{b\, x_t - \sigma F}{\alpha b - \sigma a}, \qquad
    \epsilon = \frac{\alpha F - a\, x_t}{\alpha b - \sigma a}.

The determinant of the noise's prediction is alpha, of the data's -sigma: the first says nothing of
the data in pure noise, the second nothing of the noise in the data. Those of v, of a flow's
velocity and of EDM's F vanish nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from sft_rl.config import ModelConfig

Mixture = tuple[Any, Any]
"""a and b, numbers, arrays or tensors as the levels are."""


def data_of(x_t: Any, output: Any, levels: Mixture, target: Mixture) -> Any:
    """x_0 for a prediction F; levels are (alpha, sigma), the target (a, b)."""
    (alpha, sigma), (a, b) = levels, target
    return (b * x_t - sigma * output) / (alpha * b - sigma * a)


def step_coefficients(goal: Mixture, levels: Mixture, target: Mixture) -> Mixture:
    """Write ``goal[0] x_0 + goal[1] eps`` as ``c_x x_t + c_F F``; return c_x and c_F."""
    (m, n), (alpha, sigma), (a, b) = goal, levels, target
    determinant = alpha * b - sigma * a
    return (m * b - n * a) / determinant, (n * alpha - m * sigma) / determinant


@dataclass(frozen=True)
class Prediction:
    """What a network predicts, and how it wants to be called.

    Attributes:
        kind: ``epsilon``, the noise; ``v_prediction``, alpha eps - sigma x_0 (Salimans and Ho,
            2022); ``sample``, x_0; ``flow``, the velocity eps - x_0; ``score``, -eps / sigma;
            ``edm``, the inner network F of Karras et al. (2022).
        sigma_data: Standard deviation of the data that an ``edm`` network assumes.
        clip: Bound of |x_0| in every step; None for none.
    """

    kind: str = "epsilon"
    sigma_data: float = 0.5
    clip: float | None = None

    @staticmethod
    def from_config(config: ModelConfig) -> Prediction:
        """Take it from the settings of the model."""
        return Prediction(config.prediction, config.sigma_data, config.clip_x0)

    def target(self, alpha: Any, sigma: Any) -> Mixture:
        """Return a and b of F = a x_0 + b eps at a level."""
        if self.kind == "v_prediction":
            return -sigma, alpha
        if self.kind == "sample":
            return 1.0, 0.0
        if self.kind == "flow":
            return -1.0, 1.0
        if self.kind == "score":
            return 0.0, -1.0 / sigma
        if self.kind == "edm":
            total = self._std(alpha, sigma)
            return sigma / (self.sigma_data * total), -self.sigma_data * alpha / total
        return 0.0, 1.0

    def input_scale(self, alpha: Any, sigma: Any) -> Any:
        """What x_t is multiplied by for the network: EDM's c_in, 1 for all others."""
        return 1.0 / self._std(alpha, sigma) if self.kind == "edm" else 1.0

    def network_times(self, path_times: Any, alpha: Any, sigma: Any) -> Any:
        """What the network is told of the level: EDM's c_noise, the path's own for all others."""
        if self.kind != "edm":
            return path_times
        ratio = sigma / alpha
        return (ratio.log() if isinstance(ratio, Tensor) else np.log(ratio)) / 4.0

    def _std(self, alpha: Any, sigma: Any) -> Any:
        """Standard deviation of x_t."""
        return (alpha**2 * self.sigma_data**2 + sigma**2) ** 0.5
