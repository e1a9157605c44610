r"""Few-step schedules as data: one type, several constructors.

Latents are kept at the scale of unit variance, :math:`x / \sqrt{\alpha^2 + \sigma^2}`, so a chain
starts from N(0, I) on every path, and a level is one number g, the data's share of the variance.
A DDPM's latents have that scale anyway.

One reverse step from level g_k to g_{k+1} (the last one 1) is

.. math::
    \sigma_k^2 = \eta^2 \frac{1 - g_{k+1}}{1 - g_k} \Bigl(1 - \frac{g_k}{g_{k+1}}\Bigr), \qquad
    \mu_k = \sqrt{g_{k+1}}\, \hat x_0 + \sqrt{1 - g_{k+1} - \sigma_k^2}\, \hat\epsilon

with eta = 1 the DDPM posterior and eta = 0 DDIM (Song et al., 2021; Kong and Ping, 2021, for
noise levels between the training ones). Both estimates are linear in the latent and in what the
network predicts (:mod:`sft_rl.diffusion.prediction`), and so is the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sft_rl.config import SamplerConfig
from sft_rl.diffusion.noise import Array, GaussianPath, NoiseSchedule
from sft_rl.diffusion.prediction import Mixture, Prediction, step_coefficients
from sft_rl.diffusion.spacing import fastdpm_step_times, fastdpm_var_betas, subsampled_times
from sft_rl.errors import UserError

EPSILON = Prediction()


@dataclass(frozen=True)
class StepSchedule:
    """What a sampler of T steps needs to know of the noise, float64, each of shape (T,).

    The mean of step k is ``coef_x[k] * x + coef_output[k] * output``, its standard deviation
    ``std[k]``; output is what the network predicts of ``input_scale[k] * x``.

    Attributes:
        timesteps: What the network is called with at each step, decreasing, may be fractional.
        coef_x: Coefficient of the latent.
        coef_output: Coefficient of the network's prediction.
        std: Standard deviation of the noise added; 0 for a deterministic step.
        alpha_bar: Share of the data's variance in the latent that the step starts from.
        target: The prediction as a mixture of data and noise, a and b of each step, shape (2, T);
            by default the noise, (0, 1).
        input_scale: What the network wants latents multiplied by; None for 1.
        clip: Bound of the |x_0| that each step expects; None for none.
    """

    timesteps: Array
    coef_x: Array
    coef_output: Array
    std: Array
    alpha_bar: Array
    target: Array = field(default_factory=lambda: np.array([[0.0], [1.0]]))
    input_scale: Array | None = None
    clip: float | None = None

    def __post_init__(self) -> None:
        parts = (self.timesteps, self.coef_x, self.coef_output, self.std, self.alpha_bar)
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
    def table(self) -> Array:
        """What the steps do: coef_x, coef_output and std, shape (3, T)."""
        return np.stack([self.coef_x, self.coef_output, self.std])


def from_levels(
    timesteps: Array,
    levels: Array,
    *,
    eta: float | Sequence[float] = 1.0,
    final_std: float = 0.0,
    stochasticity: str = "posterior",
    target: Mixture = (0.0, 1.0),
) -> StepSchedule:
    """Build the schedule that walks through given noise levels and ends at the data.

    Args:
        timesteps: What the network is called with at each level, shape (T,).
        levels: alpha_bar at each level, increasing, shape (T,).
        eta: Stochasticity, 1 for the DDPM posterior, 0 for DDIM; or one for each step.
        final_std: Noise of the last step, whose posterior has none.
        stochasticity: Which noise a step adds: ``posterior``, ``cps`` or ``flow_sde``.
        target: What the network predicts of data and noise at each level.

    Raises:
        UserError: If the prediction says nothing of the data at a level.
    """
    g, g_next = levels, np.append(levels[1:], 1.0)
    here = np.sqrt(g), np.sqrt(1.0 - g)
    target = np.broadcast_to(target[0], g.shape), np.broadcast_to(target[1], g.shape)
    if (here[0] * target[1] == here[1] * target[0]).any():
        raise UserError(
            "sampler.start_time: a network that predicts noise says nothing of the data in pure "
            "noise (alpha = 0); start later"
        )
    goal_data, goal_noise, std = _STEPS[stochasticity](g, g_next, np.broadcast_to(eta, g.shape))
    goal_data[-1], goal_noise[-1], std[-1] = 1.0, 0.0, final_std
    coef_x, coef_output = step_coefficients((goal_data, goal_noise), here, target)
    return StepSchedule(
        timesteps=timesteps,
        coef_x=coef_x,
        coef_output=coef_output,
        std=std,
        alpha_bar=levels,
        target=np.stack(target),
    )


Step = tuple[Array, Array, Array]
"""What the next latent holds of the expected data, of the expected noise, and of new noise."""


def _posterior(g: Array, g_next: Array, eta: Array) -> Step:
    """A share eta of the standard deviation of q(x_{k+1} | x_k, x_0): DDPM, DDIM."""
    var = eta**2 * (1.0 - g_next) / (1.0 - g) * (1.0 - g / g_next)
    return np.sqrt(g_next), np.sqrt(np.maximum(1.0 - g_next - var, 0.0)), np.sqrt(var)


def _cps(g: Array, g_next: Array, eta: Array) -> Step:
    """A share sin(eta pi / 2) of the noise that is left: Flow-CPS (Wang and Yu, 2025).

    It is EDM's churn, too: gamma with 1 / (1 + gamma) = cos(eta pi / 2), at levels after it.
    """
    left, angle = np.sqrt(1.0 - g_next), eta * np.pi / 2.0
    return np.sqrt(g_next), left * np.cos(angle), left * np.sin(angle)


def _flow_sde(g: Array, g_next: Array, eta: Array) -> Step:
    """An Euler step of the flow's SDE (Liu et al., 2025), s = eta sqrt(sigma / (1 - sigma)).

    Levels of other paths are those of the flow with the same ratio of noise to data. In pure noise
    s is that of the second level.
    """
    noise, noise_next = (np.sqrt(1.0 - h) / (np.sqrt(h) + np.sqrt(1.0 - h)) for h in (g, g_next))
    finite = np.where((noise == 1.0) & (noise_next > 0.0), noise_next, noise)
    with np.errstate(divide="ignore"):
        var = np.where(finite < 1.0, eta**2 * finite / (1.0 - finite), 0.0)
    dt = noise_next - noise
    of_x, of_v = 1.0 + var * dt / (2.0 * noise), dt * (1.0 + var * (1.0 - noise) / (2.0 * noise))
    scale = 1.0 / np.hypot(1.0 - noise_next, noise_next)  # to latents of unit variance
    return (
        ((1.0 - noise) * of_x - of_v) * scale,
        (noise * of_x + of_v) * scale,
        np.sqrt(-var * dt) * scale,
    )


_STEPS = {"posterior": _posterior, "cps": _cps, "flow_sde": _flow_sde}


def on_path(
    path: GaussianPath,
    prediction: Prediction,
    times: Array,
    *,
    levels: Array | None = None,
    eta: float | Sequence[float] = 1.0,
    final_std: float = 0.0,
    stochasticity: str = "posterior",
) -> StepSchedule:
    """Build the schedule that walks through times of a path, for a network of a prediction.

    Args:
        path: The path that the network was trained on.
        prediction: What it predicts.
        times: The path's times, decreasing, shape (T,).
        levels: alpha_bar at these times, where it is known more exactly.
        eta: As of :func:`from_levels`, like all others.
        final_std: Noise of the last step.
        stochasticity: Which noise a step adds.
    """
    alpha, sigma = path.levels(times)
    with np.errstate(divide="ignore"):
        called_with = prediction.network_times(path.network_times(times), alpha, sigma)
    if not np.isfinite(called_with).all():
        raise UserError(
            "sampler.start_time: an edm network has no level for pure noise (alpha = 0); start "
            "later"
        )
    schedule = from_levels(
        called_with,
        path.alpha_bar_at(times) if levels is None else levels,
        eta=eta,
        final_std=final_std,
        stochasticity=stochasticity,
        target=prediction.target(alpha, sigma),
    )
    scale = np.hypot(alpha, sigma) * prediction.input_scale(alpha, sigma)
    plain = np.allclose(scale, 1.0, rtol=1e-12)
    return replace(schedule, input_scale=None if plain else scale, clip=prediction.clip)


def own_steps(
    path: GaussianPath,
    prediction: Prediction = EPSILON,
    *,
    variance: str = "fixed_small",
    final_noise: bool = False,
) -> StepSchedule:
    """Walk through all training steps: a full-step sampler.

    Args:
        path: The path that the network was trained on.
        prediction: What it predicts.
        variance: Of the noise, as of `noise.variance`: the posterior's, beta or none.
        final_noise: Add noise at the last step, too, as in training.
    """
    times = np.arange(path.num_train_timesteps, dtype=np.float64)[::-1]
    levels = path.alpha_bar_at(times)
    steps = on_path(path, prediction, times, levels=levels, eta=float(variance != "none"))
    if variance != "fixed_large":
        return steps
    std = np.sqrt(1.0 - levels / np.append(levels[1:], 1.0))
    return replace(steps, std=std if final_noise else np.append(std[:-1], 0.0))


def spread_steps(
    path: GaussianPath,
    num_steps: int,
    prediction: Prediction = EPSILON,
    *,
    variance: str = "fixed_small",
) -> StepSchedule:
    """Walk through `num_steps` training times, evenly spread, by the DDPM posterior or DDIM.

    As many as the model's own are the model's own.
    """
    times = np.linspace(path.num_train_timesteps - 1.0, 0.0, num_steps)
    levels, eta = path.alpha_bar_at(times), float(variance != "none")
    return on_path(path, prediction, times, levels=levels, eta=eta)


def step_schedule(
    path: GaussianPath, config: SamplerConfig, prediction: Prediction = EPSILON
) -> StepSchedule:
    """Build the few-step schedule a configuration names.

    Raises:
        UserError: If the times do not decrease or leave the training range, or a schedule does not
            go with the path.
    """
    num, last = config.num_steps, path.num_train_timesteps - 1
    is_fastdpm = config.schedule.startswith("fastdpm")
    if is_fastdpm and config.spacing not in ("uniform", "quadratic"):
        raise UserError(
            f"sampler.spacing: {config.spacing!r} goes with schedule 'subsampled', "
            f"not with {config.schedule!r}; use uniform or quadratic"
        )
    if config.schedule == "own":
        if num != last + 1:
            raise UserError(
                f"sampler.num_steps: schedule 'own' takes the model's own {last + 1} steps, "
                f"got {num}"
            )
        return own_steps(path, prediction, variance="fixed_large", final_noise=True)
    levels = None
    if config.schedule in ("fastdpm_var", "fastdpm_var_capped"):
        if not isinstance(path, NoiseSchedule):
            raise UserError(
                f"sampler.schedule: {config.schedule!r} is made of a DDPM's betas, which only "
                "noise.path=vp has; use subsampled, fastdpm_step or timesteps"
            )
        capped = config.schedule == "fastdpm_var_capped"
        betas = fastdpm_var_betas(path, num, config.spacing, capped=capped)
        levels = np.cumprod(1.0 - betas)[::-1]
        times = path.timestep_of(levels)
    elif config.schedule == "timesteps":
        assert config.timesteps is not None
        times = np.asarray(config.timesteps, dtype=np.float64)
        if np.any(np.diff(times) >= 0) or times[0] > last or times[-1] < 0:
            raise UserError(
                f"sampler.timesteps: must decrease within {last}..0, got {list(config.timesteps)}"
            )
    elif config.schedule == "fastdpm_step":
        times = fastdpm_step_times(path, num, config.spacing)
    else:
        times = subsampled_times(path, config)
    return on_path(
        path,
        prediction,
        times,
        levels=levels,
        eta=config.eta,
        final_std=config.final_std,
        stochasticity=config.stochasticity,
    )
