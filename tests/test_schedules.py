"""Few-step schedules against golden numbers and posteriors worked out by hand."""

import numpy as np
import pytest

from sft_rl.config import NoiseConfig, SamplerConfig
from sft_rl.diffusion.noise import NoiseSchedule
from sft_rl.diffusion.schedule import (
    StepSchedule,
    from_levels,
    own_steps,
    spread_steps,
    step_schedule,
)
from sft_rl.errors import UserError

DDPM = NoiseSchedule.from_config(NoiseConfig())


def test_fastdpm_var_golden_timesteps():
    config = SamplerConfig(num_steps=10, schedule="fastdpm_var_capped", spacing="quadratic")
    golden = [616.7, 494.0, 394.1, 308.9, 234.9, 170.3, 114.4, 66.9, 28.3, 0.0]
    timesteps = step_schedule(DDPM, config).timesteps
    assert timesteps == pytest.approx(golden, abs=0.06)
    assert DDPM.alpha_bar_at(timesteps[0]) == pytest.approx(0.0208, abs=5e-5)


def test_the_training_noise_ends_where_the_paper_says():
    assert DDPM.alphas_cumprod[-1] == pytest.approx(4e-5, rel=0.02)


@pytest.mark.parametrize("spacing", ["uniform", "quadratic"])
@pytest.mark.parametrize("num_steps", [2, 4, 10, 50])
def test_fastdpm_var_uses_up_the_training_noise(spacing: str, num_steps: int):
    config = SamplerConfig(num_steps=num_steps, schedule="fastdpm_var", spacing=spacing)
    schedule = step_schedule(DDPM, config)
    assert schedule.timesteps[0] == pytest.approx(999.0, abs=1e-6)
    assert schedule.timesteps[-1] == pytest.approx(0.0, abs=1e-6)


def test_alpha_bar_and_timestep_are_inverse():
    times = np.linspace(0.0, 999.0, 777)
    assert DDPM.timestep_of(DDPM.alpha_bar_at(times)) == pytest.approx(times, abs=1e-6)


def test_posterior_of_a_two_step_chain_by_hand():
    """q(x_1 | x_2, x_0) for beta_1 = 0.1, beta_2 = 0.2, from Bayes' rule on scalars."""
    beta_1, beta_2 = 0.1, 0.2
    bar_1, bar_2 = 0.9, 0.9 * 0.8
    variance = 1.0 / (1.0 / (1.0 - bar_1) + (1.0 - beta_2) / beta_2)
    x_2, eps = 1.3, -0.4
    x_0 = (x_2 - np.sqrt(1.0 - bar_2) * eps) / np.sqrt(bar_2)
    mean = variance * (np.sqrt(bar_1) * x_0 / (1.0 - bar_1) + np.sqrt(1.0 - beta_2) * x_2 / beta_2)

    schedule = own_steps(NoiseSchedule(np.array([beta_1, beta_2])))
    assert schedule.std[0] ** 2 == pytest.approx(variance)
    assert schedule.coef_x[0] * x_2 + schedule.coef_output[0] * eps == pytest.approx(mean)
    # The last step returns the predicted data, without noise.
    x_1 = 0.7
    predicted = (x_1 - np.sqrt(beta_1) * eps) / np.sqrt(1.0 - beta_1)
    assert schedule.coef_x[1] * x_1 + schedule.coef_output[1] * eps == pytest.approx(predicted)
    assert schedule.std[1] == 0.0


def test_the_papers_toy_adds_noise_of_variance_beta_at_every_step():
    noise = NoiseSchedule.from_config(
        NoiseConfig(schedule="sigmoid", num_train_timesteps=10, beta_start=1e-5, beta_end=1e-2)
    )
    schedule = step_schedule(noise, SamplerConfig(num_steps=10, schedule="own"))
    beta = 1e-5 + (1e-2 - 1e-5) / (1.0 + np.exp(np.linspace(6.0, -6.0, 10)))
    assert schedule.timesteps.tolist() == list(range(9, -1, -1))
    assert schedule.std[::-1] ** 2 == pytest.approx(beta)
    assert schedule.coef_x[::-1] == pytest.approx(1.0 / np.sqrt(1.0 - beta))
    noise_left = np.sqrt(1.0 - np.cumprod(1.0 - beta))
    assert schedule.coef_output[::-1] == pytest.approx(-beta / np.sqrt(1.0 - beta) / noise_left)
    assert (schedule.std > 0).all()


def test_ddim_is_deterministic_and_keeps_the_predicted_data():
    """With eta = 0 a perfect eps-prediction moves x along sqrt(bar) x_0 + sqrt(1 - bar) eps."""
    times = np.array([900.0, 500.0, 100.0])
    levels = DDPM.alpha_bar_at(times)
    schedule = from_levels(times, levels, eta=0.0)
    x_0, eps = 0.8, -1.1
    x = np.sqrt(levels[0]) * x_0 + np.sqrt(1.0 - levels[0]) * eps
    for k in range(3):
        x = schedule.coef_x[k] * x + schedule.coef_output[k] * eps
    assert x == pytest.approx(x_0)
    assert not schedule.std.any()


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_step_of_any_eta_keeps_the_marginal(eta: float):
    """Coefficients and noise of one step land on the next level's signal and variance."""
    times = np.array([900.0, 500.0, 100.0])
    g = DDPM.alpha_bar_at(times)
    schedule = from_levels(times, g, eta=eta)
    for k in range(2):
        noise_kept = schedule.coef_x[k] * np.sqrt(1.0 - g[k]) + schedule.coef_output[k]
        assert schedule.coef_x[k] * np.sqrt(g[k]) == pytest.approx(np.sqrt(g[k + 1]))
        assert noise_kept**2 + schedule.std[k] ** 2 == pytest.approx(1.0 - g[k + 1])


def test_trailing_times_end_one_spacing_above_zero():
    config = SamplerConfig(num_steps=4, spacing="trailing", start_time=300)
    assert step_schedule(DDPM, config).timesteps == pytest.approx([300, 225, 150, 75])


@pytest.mark.parametrize("times", [[5.0, 900.0], [900.0, 900.0], [1000.0, 3.0]])
def test_times_must_decrease_within_the_training_range(times: list[float]):
    with pytest.raises((UserError, ValueError), match="decrease"):
        step_schedule(DDPM, SamplerConfig(timesteps=tuple(times)))


def test_steps_spread_over_all_times_are_the_models_own():
    own, spread = own_steps(DDPM), spread_steps(DDPM, 1000)
    assert spread.timesteps.tolist() == own.timesteps.tolist()
    np.testing.assert_allclose(spread.std, own.std, rtol=1e-9, atol=1e-12)
    assert spread_steps(DDPM, 4).timesteps.tolist() == [999.0, 666.0, 333.0, 0.0]


def test_a_schedule_with_nan_is_refused():
    with pytest.raises(UserError, match="finite"):
        StepSchedule(np.array([1.0]), np.array([np.nan]), *[np.array([0.1])] * 3)
