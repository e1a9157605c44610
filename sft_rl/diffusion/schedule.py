r"""Few-step schedules as data: one type, several constructors.

One reverse step from noise level g_k to g_{k+1} (values of alpha_bar, the last one 1) is

.. math::
    \sigma_k^2 = \eta^2 \frac{1 - g_{k+1}}{1 - g_k} \Bigl(1 - \frac{g_k}{g_{k+1}}\Bigr), \qquad
    \mu_k(x) = \sqrt{\tfrac{g_{k+1}}{g_k}}\, x + \Bigl(\sqrt{1 - g_{k+1} - \sigma_k^2}
        - \sqrt{1 - g_k} \sqrt{\tfrac{g_{k+1}}{g_k}}\Bigr)\, \epsilon_\theta(x, t_k)

with eta = 1 the DDPM posterior and eta = 0 DDIM (Song et al., 2021; Kong and Ping, 2021, for
noise levels between the training ones).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sft_rl.config import SamplerConfig
from sft_rl.diffusion.noise import Array, NoiseSchedule
from sft_rl.errors import UserError


@dataclass(frozen=True)
class StepSchedule:
    """What a sampler of T steps needs to know of the noise, float64, each of shape (T,).

    The mean of step k is ``coef_x[k] * x + coef_eps[k] * eps``, its standard deviation
    ``std[k]``.

    Attributes:
        timesteps: The model's time at each step, decreasing, may be fractional.
        coef_x: Coefficient of the latent.
        coef_eps: Coefficient of the predicted noise.
        std: Standard deviation of the noise added; 0 for a deterministic step.
        alpha_bar: Share of the data's variance in the latent that the step starts from.
    """

    timesteps: Array
    coef_x: Array
    coef_eps: Array
    std: Array
    alpha_bar: Array

    def __post_init__(self) -> None:
        parts = (self.timesteps, self.coef_x, self.coef_eps, self.std, self.alpha_bar)
        lengths = {len(part) for part in parts}
        if len(lengths) != 1 or not len(self.timesteps):
            raise UserError(f"a schedule needs T >= 1 entries in every part, got {lengths}")
        if np.any(np.diff(self.timesteps) >= 0):
            raise UserError(f"timesteps must decrease, got {self.timesteps.tolist()}")
        finite = all(np.isfinite(part).all() for part in parts)
        if not finite or (self.std < 0).any():
            raise UserError("a schedule's coefficients must be finite and its std not negative")

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def is_stochastic(self) -> bool:
        """Whether every step has a density, as a policy gradient needs."""
        return bool((self.std > 0).all())


def from_levels(
    timesteps: Array, levels: Array, *, eta: float = 1.0, final_std: float = 0.0
) -> StepSchedule:
    """Build the schedule that walks through given noise levels and ends at the data.

    Args:
        timesteps: The model's time at each level, shape (T,).
        levels: alpha_bar at each level, increasing, shape (T,).
        eta: Stochasticity, 1 for the DDPM posterior, 0 for DDIM.
        final_std: Noise of the last step, whose posterior has none.
    """
    g, g_next = levels, np.append(levels[1:], 1.0)
    var = eta**2 * (1.0 - g_next) / (1.0 - g) * (1.0 - g / g_next)
    coef_x = np.sqrt(g_next / g)
    coef_eps = np.sqrt(np.maximum(1.0 - g_next - var, 0.0)) - np.sqrt(1.0 - g) * coef_x
    std = np.sqrt(var)
    std[-1] = final_std
    return StepSchedule(
        timesteps=timesteps, coef_x=coef_x, coef_eps=coef_eps, std=std, alpha_bar=levels
    )


def own_steps(noise: NoiseSchedule, *, fixed_large: bool = False) -> StepSchedule:
    """Walk through all training steps, ``sigma^2 = beta`` if `fixed_large`, else the posterior.

    With `fixed_large` the last step adds noise too, in training and in sampling alike.
    """
    times = np.arange(noise.num_train_timesteps, dtype=np.float64)[::-1]
    posterior = from_levels(times, noise.alphas_cumprod[::-1])
    if not fixed_large:
        return posterior
    beta, bar = noise.betas[::-1], noise.alphas_cumprod[::-1]
    coef_x = 1.0 / np.sqrt(1.0 - beta)
    return StepSchedule(
        timesteps=times,
        coef_x=coef_x,
        coef_eps=-coef_x * beta / np.sqrt(1.0 - bar),
        std=np.sqrt(beta),
        alpha_bar=bar,
    )


def subsampled_times(noise: NoiseSchedule, config: SamplerConfig) -> Array:
    """Choose T of the training times, fractional ones included, from the noisiest down.

    ``uniform`` is evenly spaced down to 0, ``quadratic`` dense near the data (Song et al., 2021),
    ``trailing`` evenly spaced down to one spacing above 0.
    """
    last = noise.num_train_timesteps - 1
    start = float(last) if config.start_time is None else config.start_time
    if start > last:
        raise UserError(f"sampler.start_time: must be at most {last}, got {start:g}")
    if config.num_steps == 1:
        return np.array([start])
    if config.spacing == "trailing":
        return np.asarray(start * (1.0 - np.arange(config.num_steps) / config.num_steps))
    power = 1.0 if config.spacing == "uniform" else 2.0
    return np.asarray(start * (np.linspace(0.0, 1.0, config.num_steps) ** power)[::-1])


def fastdpm_step_times(noise: NoiseSchedule, num_steps: int, spacing: str) -> Array:
    """FastDPM's STEP times (Kong and Ping, 2021): whole steps, or quadratic up to 0.8 of them."""
    num = noise.num_train_timesteps
    if num_steps == 1:
        return np.array([num - 1.0])
    if spacing == "uniform":
        whole = np.floor(np.arange(num_steps) * (num - 1.0) / (num_steps - 1.0))
        return np.asarray(whole[::-1])
    return np.asarray((np.linspace(0.0, np.sqrt(num * 0.8), num_steps) ** 2)[::-1])


def fastdpm_var_betas(
    noise: NoiseSchedule, num_steps: int, spacing: str, *, capped: bool = False
) -> Array:
    """FastDPM's VAR noise (Kong and Ping, 2021): T betas that use up the same total noise.

    Args:
        noise: The training noise to match.
        num_steps: Number of betas T.
        spacing: ``uniform``: betas in arithmetic progression;
            ``quadratic``: eta_i = beta_0 (1 + i c)^2.
        capped: Bound the search for c as the published code does. With few steps it then stops
            at the bound, above the training noise's own end (alpha_bar 0.0208, not 4e-5, at
            T = 10).
    """
    first = noise.betas[0]
    target = np.log(noise.alphas_cumprod[-1])
    index = np.arange(num_steps)

    def betas(c: float) -> Array:
        if spacing == "uniform":
            return np.asarray(first + (c - first) * index / (num_steps - 1))
        return np.asarray(first * (1.0 + index * c) ** 2)

    if num_steps == 1:
        return np.array([1.0 - noise.alphas_cumprod[-1]])
    if spacing == "uniform":
        low, end, published_end = first, 1.0, 0.99
    else:
        end = (1.0 / np.sqrt(first) - 1.0) / (num_steps - 1)
        low, published_end = 0.0, 0.95 / np.sqrt(first) / num_steps
    high = min(published_end, end) if capped else end * (1.0 - 1e-12)

    def excess(c: float) -> float:
        return float(np.log1p(-betas(c)).sum() - target)

    if excess(high) > 0:
        return betas(high)
    from scipy.optimize import brentq  # here, since it is slow to import

    return betas(brentq(excess, low, high, xtol=1e-14))


def step_schedule(noise: NoiseSchedule, config: SamplerConfig) -> StepSchedule:
    """Build the few-step schedule a configuration names.

    Raises:
        UserError: If the times do not decrease or leave the training range.
    """
    num, eta, final_std = config.num_steps, config.eta, config.final_std
    if config.schedule.startswith("fastdpm") and config.spacing == "trailing":
        raise UserError(
            f"sampler.spacing: 'trailing' goes with schedule 'subsampled', "
            f"not with {config.schedule!r}; use uniform or quadratic"
        )
    if config.schedule == "own":
        if num != noise.num_train_timesteps:
            raise UserError(
                f"sampler.num_steps: schedule 'own' takes the model's own "
                f"{noise.num_train_timesteps} steps, got {num}"
            )
        return own_steps(noise, fixed_large=True)
    if config.schedule in ("fastdpm_var", "fastdpm_var_capped"):
        capped = config.schedule == "fastdpm_var_capped"
        betas = fastdpm_var_betas(noise, num, config.spacing, capped=capped)
        levels = np.cumprod(1.0 - betas)[::-1]
        times = noise.timestep_of(levels)
        return from_levels(times, levels, eta=eta, final_std=final_std)
    if config.schedule == "timesteps":
        assert config.timesteps is not None
        times = np.asarray(config.timesteps, dtype=np.float64)
        last = noise.num_train_timesteps - 1
        if np.any(np.diff(times) >= 0) or times[0] > last or times[-1] < 0:
            raise UserError(
                f"sampler.timesteps: must decrease within {last}..0, got {list(config.timesteps)}"
            )
    elif config.schedule == "fastdpm_step":
        times = fastdpm_step_times(noise, num, config.spacing)
    else:
        times = subsampled_times(noise, config)
    return from_levels(times, noise.alpha_bar_at(times), eta=eta, final_std=final_std)
