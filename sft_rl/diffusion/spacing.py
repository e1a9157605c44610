"""Which of the training times, or how much noise a step, a few-step schedule takes."""

from __future__ import annotations

import numpy as np

from sft_rl.config import SamplerConfig
from sft_rl.diffusion.noise import RHO, Array, GaussianPath, NoiseSchedule
from sft_rl.errors import UserError


def subsampled_times(path: GaussianPath, config: SamplerConfig) -> Array:
    """Choose T of the training times, fractional ones included, from the noisiest down.

    ``uniform`` is evenly spaced down to 0, ``quadratic`` dense near the data (Song et al., 2021),
    ``trailing`` evenly spaced down to one spacing above 0, ``karras`` evenly in the seventh root of
    the ratio of noise to data (Karras et al., 2022).
    """
    last = path.num_train_timesteps - 1
    start = float(last) if config.start_time is None else config.start_time
    if start > last:
        raise UserError(f"sampler.start_time: must be at most {last}, got {start:g}")
    if config.num_steps == 1:
        return np.array([start])
    if config.spacing == "trailing":
        return np.asarray(start * (1.0 - np.arange(config.num_steps) / config.num_steps))
    if config.spacing == "karras":
        g = path.alpha_bar_at(np.array([start, 0.0]))
        if g[0] == 0.0:
            raise UserError(
                "sampler.spacing: karras needs a start with some data left (alpha > 0); set "
                "sampler.start_time"
            )
        first, end = ((1.0 - g) / g) ** (0.5 / RHO)
        ratio = np.linspace(first, end, config.num_steps) ** RHO
        return np.asarray(np.clip(path.timestep_of(1.0 / (1.0 + ratio**2)), 0.0, start))
    power = 1.0 if config.spacing == "uniform" else 2.0
    return np.asarray(start * (np.linspace(0.0, 1.0, config.num_steps) ** power)[::-1])


def fastdpm_step_times(path: GaussianPath, num_steps: int, spacing: str) -> Array:
    """FastDPM's STEP times (Kong and Ping, 2021): whole steps, or quadratic up to 0.8 of them."""
    num = path.num_train_timesteps
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
