"""The forward process: how much signal is left at each training timestep."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sft_rl.config import NoiseConfig

Array = np.ndarray


@dataclass(frozen=True)
class NoiseSchedule:
    """The betas of a DDPM and what follows from them, in float64.

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
    def num_train_timesteps(self) -> int:
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

    def add_noise(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Draw from q(x_t | x_0) = N(sqrt(alpha_bar) x_0, 1 - alpha_bar).

        Args:
            x_0: Data, shape (..., *shape).
            noise: Standard normal noise, shape (..., *shape).
            timesteps: Fractional timesteps, broadcastable to (...).
        """
        bar = self.alpha_bar_for(timesteps, x_0)
        return bar.sqrt() * x_0 + (1.0 - bar).sqrt() * noise

    def noise_of(self, x_t: Tensor, velocity: Tensor, timesteps: Tensor) -> Tensor:
        """Turn v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0 into the noise in x_t.

        Shapes as in :meth:`add_noise`.
        """
        bar = self.alpha_bar_for(timesteps, x_t)
        return bar.sqrt() * velocity + (1.0 - bar).sqrt() * x_t

    def alpha_bar_for(self, timesteps: Tensor, x: Tensor) -> Tensor:
        """alpha_bar at fractional timesteps, as `alpha_bar_at`, expanded to multiply x."""
        log_bar = torch.as_tensor(np.log(self.alphas_cumprod), dtype=torch.float32)
        log_bar = log_bar.to(timesteps.device)
        low = timesteps.floor().long().clamp(max=max(self.num_train_timesteps - 2, 0))
        high = (low + 1).clamp(max=self.num_train_timesteps - 1)
        bar = torch.lerp(log_bar[low], log_bar[high], timesteps - low).exp()
        return bar.reshape(*bar.shape, *[1] * (x.ndim - bar.ndim))
