"""Gaussian paths from data to noise: how much of each there is at each of a model's times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sft_rl.config import NoiseConfig

Array = np.ndarray
RHO = 7.0
"""Karras et al. (2022): levels are spread evenly in the seventh root of the noise."""


class GaussianPath(ABC):
    r"""The forward process :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon`.

    On every path a time is a number of 0..num_train_timesteps - 1, fractional ones included: 0 is
    next to the data, the last is (almost) pure noise. Training draws times evenly, samplers spread
    their steps over them.
    """

    num_train_timesteps: int

    @abstractmethod
    def levels(self, times: Any) -> tuple[Any, Any]:
        """Return alpha and sigma at fractional times, arrays or tensors as the times are."""

    @abstractmethod
    def timestep_of(self, alpha_bar: Array) -> Array:
        """Return the fractional times with the given :meth:`alpha_bar_at`: undoes it."""

    def network_times(self, times: Any) -> Any:
        """What a network is called with at the given times: the times themselves."""
        return times

    def alpha_bar_at(self, times: Array) -> Array:
        """The data's share of the variance, alpha^2 / (alpha^2 + sigma^2)."""
        alpha, sigma = self.levels(times)
        return np.asarray(alpha**2 / (alpha**2 + sigma**2))

    def levels_for(self, times: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma at fractional times, broadcastable to (...), expanded to multiply x."""
        alpha, sigma = self.levels(times)
        dims = (*times.shape, *[1] * (x.ndim - times.ndim))
        return alpha.reshape(dims), sigma.reshape(dims)

    def add_noise(self, x_0: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Draw from q(x_t | x_0) = N(alpha x_0, sigma^2).

        Args:
            x_0: Data, shape (..., *shape).
            noise: Standard normal noise, shape (..., *shape).
            times: Fractional times, broadcastable to (...).
        """
        alpha, sigma = self.levels_for(times, x_0)
        return alpha * x_0 + sigma * noise


def path_of(config: NoiseConfig) -> GaussianPath:
    """Build the path that a configuration names."""
    if config.path == "ve":
        return VarianceExploding(config.num_train_timesteps, config.sigma_min, config.sigma_max)
    if config.path == "flow":
        return FlowPath(config.num_train_timesteps, config.shift)
    return NoiseSchedule.from_config(config)


@dataclass(frozen=True)
class VarianceExploding(GaussianPath):
    """alpha = 1, sigma from sigma_min to sigma_max, spread as by Karras et al. (2022).

    A network is called with sigma.

    Attributes:
        num_train_timesteps: Number of whole times.
        sigma_min: Noise at time 0, in units of the data.
        sigma_max: Noise at the last time.
    """

    num_train_timesteps: int
    sigma_min: float
    sigma_max: float

    def levels(self, times: Any) -> tuple[Any, Any]:
        """Return alpha and sigma at fractional times."""
        low, high = self._ends
        sigma = (low + times / max(self.num_train_timesteps - 1, 1) * (high - low)) ** RHO
        return 1.0 + 0.0 * sigma, sigma

    def network_times(self, times: Any) -> Any:
        """What a network is called with: sigma."""
        return self.levels(times)[1]

    def timestep_of(self, alpha_bar: Array) -> Array:
        """Return the fractional times with the given alpha_bar."""
        low, high = self._ends
        root = ((1.0 - alpha_bar) / alpha_bar) ** (0.5 / RHO)
        return np.asarray((root - low) / (high - low) * (self.num_train_timesteps - 1))

    @property
    def _ends(self) -> tuple[float, float]:
        return self.sigma_min ** (1.0 / RHO), self.sigma_max ** (1.0 / RHO)


@dataclass(frozen=True)
class FlowPath(GaussianPath):
    r"""The straight path of flow matching: alpha = 1 - sigma.

    Sigma is (time + 1) / num_train_timesteps. With a shift s it is
    :math:`s u / (1 + (s - 1) u)`, where u falls evenly from 1 to :math:`s / (N + s - 1)`: times
    are denser in the noise (Esser et al., 2024), as diffusers' FlowMatchEulerDiscreteScheduler
    spreads them.

    A network is called with num_train_timesteps * sigma, 1..1000 as a rule.

    Attributes:
        num_train_timesteps: Number of whole times N.
        shift: s; 1 for none.
    """

    num_train_timesteps: int
    shift: float = 1.0

    def levels(self, times: Any) -> tuple[Any, Any]:
        """Return alpha and sigma at fractional times."""
        s = self.shift
        sigma = s * (times + s) / (self._range + (s - 1.0) * (times + s))
        return 1.0 - sigma, sigma

    def network_times(self, times: Any) -> Any:
        """What a network is called with: sigma in units of 1 / num_train_timesteps."""
        s, num = self.shift, self.num_train_timesteps
        return (times + s) * (num * s / (self._range + (s - 1.0) * (times + s)))

    def timestep_of(self, alpha_bar: Array) -> Array:
        """Return the fractional times with the given alpha_bar."""
        noise, signal = np.sqrt(1.0 - alpha_bar), np.sqrt(alpha_bar)
        sigma, s = noise / (noise + signal), self.shift
        return np.asarray(sigma * self._range / (s - (s - 1.0) * sigma) - s)

    @property
    def _range(self) -> float:
        return self.num_train_timesteps - 1 + self.shift


@dataclass(frozen=True)
class NoiseSchedule(GaussianPath):
    """A path that keeps the variance: the betas of a DDPM and what follows from them, in float64.

    Attributes:
        betas: Variance added at each training step, shape (num_train_timesteps,).
    """

    betas: Array

    @staticmethod
    def from_config(config: NoiseConfig) -> NoiseSchedule:
        """Build the betas named by a configuration.

        ``linear`` is that of Ho et al. (2020), ``scaled_linear`` that of Rombach et al. (2022),
        ``cosine`` of Nichol and Dhariwal (2021),
        ``sigmoid`` that of the paper's toy: a sigmoid of -6..6 scaled to the range.
        """
        if config.betas is not None:
            return NoiseSchedule(np.asarray(config.betas, dtype=np.float64))
        num, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
        if config.schedule == "linear":
            return NoiseSchedule(np.linspace(start, end, num))
        if config.schedule == "scaled_linear":
            return NoiseSchedule(np.linspace(np.sqrt(start), np.sqrt(end), num) ** 2)
        if config.schedule == "sigmoid":
            ramp = 1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, num)))
            return NoiseSchedule(start + (end - start) * ramp)
        edges = np.cos((np.linspace(0.0, 1.0, num + 1) + 0.008) / 1.008 * np.pi / 2) ** 2
        return NoiseSchedule(np.clip(1.0 - edges[1:] / edges[:-1], 0.0, 0.999))

    @property
    def num_train_timesteps(self) -> int:  # type: ignore[override]
        """Number of training steps, 1000 as a rule."""
        return len(self.betas)

    @cached_property
    def alphas_cumprod(self) -> Array:
        """alpha_bar_t, the share of signal variance left after step t, shape (num,)."""
        return np.cumprod(1.0 - self.betas)

    def alpha_bar_at(self, timesteps: Array) -> Array:
        """Return alpha_bar at fractional timesteps, log-linear between whole ones."""
        grid = np.arange(self.num_train_timesteps)
        return np.asarray(np.exp(np.interp(timesteps, grid, np.log(self.alphas_cumprod))))

    def timestep_of(self, alpha_bar: Array) -> Array:
        """Return the fractional timesteps with the given alpha_bar: undoes `alpha_bar_at`."""
        log_bar = np.log(self.alphas_cumprod)[::-1]
        grid = np.arange(self.num_train_timesteps, dtype=np.float64)[::-1]
        return np.asarray(np.interp(np.log(alpha_bar), log_bar, grid))

    def levels(self, times: Any) -> tuple[Any, Any]:
        """Return alpha and sigma at fractional times: roots of alpha_bar and 1 - alpha_bar."""
        bar = self._alpha_bar(times) if isinstance(times, Tensor) else self.alpha_bar_at(times)
        return bar**0.5, (1.0 - bar) ** 0.5

    def _alpha_bar(self, times: Tensor) -> Tensor:
        """As `alpha_bar_at`, of tensors."""
        log_bar = torch.as_tensor(np.log(self.alphas_cumprod), dtype=torch.float32)
        log_bar = log_bar.to(times.device)
        low = times.floor().long().clamp(max=max(self.num_train_timesteps - 2, 0))
        high = (low + 1).clamp(max=self.num_train_timesteps - 1)
        return torch.lerp(log_bar[low], log_bar[high], times - low).exp()
