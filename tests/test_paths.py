"""Every path, prediction and kind of step against what is known in closed form of a Gaussian.

For x_0 ~ N(m, s^2) the exact denoiser is linear, so a sampler's latents are Gaussian: their means
and variances follow by recursion, and those of infinitely many steps are the data's.
"""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from sft_rl.config import ModelConfig, NoiseConfig, SamplerConfig
from sft_rl.diffusion.loss import matching_loss
from sft_rl.diffusion.noise import FlowPath, GaussianPath, NoiseSchedule, VarianceExploding, path_of
from sft_rl.diffusion.prediction import Prediction, data_of, step_coefficients
from sft_rl.diffusion.schedule import from_levels, on_path, own_steps, spread_steps, step_schedule
from sft_rl.errors import UserError
from sft_rl.policy import DenoisingPolicy

M, S = 0.7, 0.4
PATHS = {name: path_of(NoiseConfig(path=name)) for name in ("vp", "ve", "flow")}
KINDS = ("epsilon", "v_prediction", "sample", "flow", "score", "edm")


class Exact(nn.Module):
    """The exact network of x_0 ~ N(M, S^2): E[a x_0 + b eps | x_t] at what it is called with."""

    def __init__(self, path: GaussianPath, prediction: Prediction) -> None:
        super().__init__()
        self.path, self.prediction = path, prediction

    def forward(self, x: Tensor, called_with: Tensor) -> Tensor:
        levels = self.levels(called_with.double().numpy()[..., None])  # one more for the sample
        alpha, sigma = (torch.as_tensor(level) for level in levels)
        x_t = x.double() / self.prediction.input_scale(alpha, sigma)
        x_0 = M + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (x_t - alpha * M)
        a, b = self.prediction.target(alpha, sigma)
        return a * x_0 + b * (x_t - alpha * x_0) / sigma

    def levels(self, called_with: np.ndarray) -> tuple[float, float]:
        if self.prediction.kind == "edm":
            ratio = np.exp(4.0 * called_with)
            return self.path.levels(self.path.timestep_of(1.0 / (1.0 + ratio**2)))
        if isinstance(self.path, VarianceExploding):
            return 1.0, called_with
        return self.path.levels(called_with - isinstance(self.path, FlowPath))


def affine_steps(policy: DenoisingPolicy) -> list[tuple[float, float, float]]:
    """Slope, shift and std of each step, read off the policy's own mean."""
    steps = []
    for k in range(policy.num_steps):
        at_0, at_1 = policy.mean(torch.tensor([[0.0], [1.0]]), torch.tensor(k)).flatten().tolist()
        steps.append((at_1 - at_0, at_0, float(policy.std[k])))
    return steps


def last_moments(policy: DenoisingPolicy) -> tuple[float, float]:
    mean, var = 0.0, 1.0
    for slope, shift, std in affine_steps(policy):
        mean, var = slope * mean + shift, slope**2 * var + std**2
    return mean, var


def closed_form(g: np.ndarray, goals: tuple[np.ndarray, ...]) -> tuple[float, float]:
    """The same for latents sqrt(g) x_0 + sqrt(1 - g) eps, without network or prediction."""
    mean, var = 0.0, 1.0
    for bar, of_data, of_noise, std in zip(g, *goals, strict=True):
        alpha, sigma = np.sqrt(bar), np.sqrt(1.0 - bar)
        slope = (of_data * alpha * S**2 + of_noise * sigma) / (alpha**2 * S**2 + sigma**2)
        mean, var = of_data * M + slope * (mean - alpha * M), slope**2 * var + std**2
    return mean, var


def goals_of(rule: str, g: np.ndarray, eta: np.ndarray) -> tuple[np.ndarray, ...]:
    """What each step keeps of data and noise and its std, for latents of unit variance."""
    following = np.append(g[1:], 1.0)
    alpha, sigma = np.sqrt(following), np.sqrt(1.0 - following)
    std = eta * np.sqrt((1 - following) / (1 - g) * (1 - g / following))
    if rule == "cps":
        std = sigma * np.sin(eta * np.pi / 2)
    return alpha, np.sqrt(sigma**2 - std**2), std


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0, [0.9, 0.0, 0.3, 0.0, 1.0]])
@pytest.mark.parametrize("rule", ["posterior", "cps"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PATHS)
def test_a_few_steps_have_the_moments_of_the_closed_form(name, kind, rule, eta):
    path, prediction = PATHS[name], Prediction(kind, sigma_data=0.5)
    times = np.array([980.0, 700.5, 400.0, 90.25, 3.0])
    schedule = on_path(path, prediction, times, eta=eta, stochasticity=rule, final_std=0.0)
    eta = np.broadcast_to(eta, times.shape)
    policy = DenoisingPolicy(Exact(path, prediction), schedule, shape=(1,))
    g = path.alpha_bar_at(times)
    expected = closed_form(g, goals_of(rule, g, eta))
    assert last_moments(policy) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("rule", ["posterior", "cps", "flow_sde"])
@pytest.mark.parametrize("name", PATHS)
def test_many_steps_end_in_the_data(name, rule):
    path, prediction = PATHS[name], Prediction("v_prediction")
    eta = {"posterior": 1.0, "cps": 0.05, "flow_sde": 0.7}[rule]
    times = np.linspace(990.0, 0.0, 400)
    schedule = on_path(path, prediction, times, eta=eta, stochasticity=rule)
    policy = DenoisingPolicy(Exact(path, prediction), schedule, shape=(1,))
    assert last_moments(policy) == pytest.approx((M, S**2), abs=0.01)


def test_a_flow_and_v_start_in_pure_noise_and_others_say_that_they_cannot():
    flow, times = PATHS["flow"], np.array([999.0, 500.0])
    for kind in ("flow", "v_prediction", "sample"):
        prediction = Prediction(kind)
        schedule = on_path(flow, prediction, times, eta=0.5)
        policy = DenoisingPolicy(Exact(flow, prediction), schedule, shape=(1,))
        g = flow.alpha_bar_at(times)
        assert last_moments(policy) == pytest.approx(
            closed_form(g, goals_of("posterior", g, 0.5)), abs=1e-5
        )
    for kind in ("epsilon", "score", "edm"):
        with pytest.raises(UserError, match=r"sampler.start_time: .*start later"):
            on_path(flow, Prediction(kind), times)


@pytest.mark.parametrize(
    ("name", "kind"),
    # Others are too large at an end to be learned as they are.
    [(n, k) for n in PATHS for k in KINDS if k != "score" and (n, k) != ("ve", "v_prediction")],
)
def test_the_exact_network_leaves_the_least_loss(name, kind):
    """The loss's own minimum, by its target's variance given x_t, and every shift adds to it."""
    path, prediction = PATHS[name], Prediction(kind)
    exact = Exact(path, prediction)

    def loss(shift: float) -> float:
        source = torch.Generator().manual_seed(0)
        x_0 = M + S * torch.randn(4000, 1, generator=source)
        return float(
            matching_loss(
                lambda x, t: exact(x, t) + shift,
                x_0,
                path=path,
                prediction=prediction,
                generator=source,
                num_times=8,
            )
        )

    assert loss(0.3) - loss(0.0) == pytest.approx(0.09, abs=0.02)
    assert loss(0.0) < loss(-0.3)


def test_conversions_undo_each_other():
    levels = np.array([1e-4, 0.5, 0.999]), np.array([0.9, 0.7, 1e-4])
    x_0, eps = np.array([0.3, -1.0, 2.0]), np.array([1.0, 0.2, -0.5])
    x_t = levels[0] * x_0 + levels[1] * eps
    for kind in KINDS:
        target = Prediction(kind).target(*levels)
        output = target[0] * x_0 + target[1] * eps
        # The noise says little of the data in noise, the data little of the noise in the data.
        assert data_of(x_t, output, levels, target) == pytest.approx(x_0, rel=1e-9)
        of_x, of_output = step_coefficients((0.0, 1.0), levels, target)
        assert of_x * x_t + of_output * output == pytest.approx(eps, rel=1e-9)


def test_edms_inner_network_is_as_published():
    """D = c_skip x + c_out F(c_in x, ln(sigma) / 4), Karras et al. (2022), table 1."""
    sigma, s_d, x, f = np.array([0.01, 1.0, 60.0]), 0.5, np.array([0.3, 2.0, -70.0]), 0.8
    prediction = Prediction("edm", sigma_data=s_d)
    total = sigma**2 + s_d**2
    denoised = s_d**2 / total * x + sigma * s_d / np.sqrt(total) * f
    assert data_of(x, f, (1.0, sigma), prediction.target(1.0, sigma)) == pytest.approx(denoised)
    assert prediction.input_scale(1.0, sigma) == pytest.approx(1.0 / np.sqrt(total))
    assert prediction.network_times(sigma, 1.0, sigma) == pytest.approx(np.log(sigma) / 4)


def test_karras_levels_on_every_path():
    rho, ends = 7.0, np.array([80.0, 0.002])
    first, last = ends ** (1 / rho)
    published = (first + np.arange(18) / 17 * (last - first)) ** rho
    config = SamplerConfig(num_steps=18, spacing="karras")
    schedule = step_schedule(PATHS["ve"], config, Prediction("sample"))
    assert schedule.timesteps == pytest.approx(published)
    assert schedule.input_scale == pytest.approx(np.sqrt(1.0 + published**2))
    for name in ("vp", "flow"):
        own = step_schedule(PATHS[name], config.model_copy(update={"start_time": 900.0}))
        root = (1.0 / own.alpha_bar - 1.0) ** (0.5 / rho)
        assert np.diff(root) == pytest.approx((root[-1] - root[0]) / 17)
    with pytest.raises(UserError, match=r"sampler.spacing: karras needs a start"):
        step_schedule(PATHS["flow"], config, Prediction("flow"))


def test_churn_is_a_share_of_the_noise_that_is_left():
    """EDM's algorithm 2, churned before each Euler step, on the exact denoiser of a Gaussian."""
    sigmas, gamma = np.array([40.0, 9.0, 1.5, 0.2]), 0.4
    churned, mean, var = (1.0 + gamma) * sigmas, 0.0, 0.0
    for k, sigma_hat in enumerate(churned):
        after = sigmas[k + 1] if k < 3 else 0.0
        if k == 0:
            var = 1.0 + sigma_hat**2  # latents start at N(0, I), of unit scale
        shrink = S**2 / (S**2 + sigma_hat**2)
        slope = shrink + after / sigma_hat * (1.0 - shrink)
        mean = M + slope * (mean - M)
        var = slope**2 * var + (churned[k + 1] ** 2 - after**2 if k < 3 else 0.0)
    path, prediction = PATHS["ve"], Prediction("edm")
    times = path.timestep_of(1.0 / (1.0 + churned**2))
    eta = 2.0 / np.pi * np.arccos(1.0 / (1.0 + gamma))
    schedule = on_path(path, prediction, times, eta=eta, stochasticity="cps")
    policy = DenoisingPolicy(Exact(path, prediction), schedule, shape=(1,))
    assert last_moments(policy) == pytest.approx((mean, var), abs=2e-5)


def test_flow_sde_steps_are_as_published():
    """Mean and noise of Flow-GRPO's step, on the flow's own latents."""
    t, t_next, eta, x, v = 0.8, 0.5, 0.7, 1.3, -0.4
    s, dt = eta * np.sqrt(t / (1 - t)), t_next - t
    mean = x * (1 + s**2 * dt / (2 * t)) + v * (1 + s**2 * (1 - t) / (2 * t)) * dt
    path = PATHS["flow"]
    times = np.array([t, t_next]) * 1000 - 1
    schedule = on_path(path, Prediction("flow"), times, eta=eta, stochasticity="flow_sde")
    scale, scale_next = schedule.input_scale
    latent = schedule.coef_x[0] * x / scale + schedule.coef_output[0] * v
    assert latent * scale_next == pytest.approx(mean)
    assert schedule.std[0] * scale_next == pytest.approx(s * np.sqrt(-dt))


@pytest.mark.parametrize(("shift", "num"), [(1.0, 1000), (3.0, 28), (3.0, 1000), (0.5, 4)])
def test_a_shifted_flow_has_the_times_of_diffusers(shift, num):
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(num)
    path = path_of(NoiseConfig(path="flow", shift=shift))
    schedule = spread_steps(path, num, Prediction("flow"), variance="none")
    np.testing.assert_allclose(schedule.timesteps, theirs.timesteps, rtol=1e-5)
    times = np.linspace(0.0, 999.0, 7)
    np.testing.assert_allclose(path.timestep_of(path.alpha_bar_at(times)), times, atol=1e-6)


def test_a_clipped_step_bounds_what_it_expects_of_the_data():
    path, prediction = PATHS["vp"], Prediction("epsilon", clip=1.0)
    schedule = own_steps(path, prediction)
    network = nn.Linear(1, 1)
    policy = DenoisingPolicy(lambda_module(network), schedule, shape=(1,))
    x, k = torch.tensor([[3.0], [0.1]]), torch.tensor(700)
    alpha, sigma = np.sqrt(schedule.alpha_bar[700]), np.sqrt(1 - schedule.alpha_bar[700])
    eps = network(x)
    x_0 = ((x - sigma * eps) / alpha).clamp(-1.0, 1.0)
    g, g_next = schedule.alpha_bar[700:702]
    beta = 1 - g / g_next
    expected = (
        np.sqrt(g_next) * beta / (1 - g) * x_0 + np.sqrt(1 - beta) * (1 - g_next) / (1 - g) * x
    )
    torch.testing.assert_close(policy.mean(x, k), expected, rtol=1e-5, atol=1e-5)
    assert (policy.act(x, k, torch.zeros(2, 1)).expected.abs() <= 1.0).all()


def lambda_module(network: nn.Module) -> nn.Module:
    class Timeless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.network(x)

    return Timeless()


def test_schedules_that_do_not_go_with_a_path_are_refused():
    with pytest.raises(UserError, match=r"sampler.schedule: 'fastdpm_var' .* noise.path=vp"):
        step_schedule(PATHS["flow"], SamplerConfig(schedule="fastdpm_var"))
    with pytest.raises(UserError, match=r"sampler.timesteps: must decrease within 999..0"):
        step_schedule(PATHS["ve"], SamplerConfig(timesteps=(1000.0, 3.0)))
    with pytest.raises(ValueError, match=r"noise.sigma_max: must be above sigma_min 2"):
        NoiseConfig(sigma_min=2.0, sigma_max=1.0)


def test_a_ddpms_latents_are_its_own():
    schedule = step_schedule(PATHS["vp"], SamplerConfig(num_steps=4))
    assert schedule.input_scale is None
    g = PATHS["vp"].alpha_bar_at(np.array([9.0, 1.0]))
    assert from_levels(np.array([9.0, 1.0]), g).target.tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert isinstance(PATHS["vp"], NoiseSchedule)
    assert Prediction.from_config(ModelConfig()) == Prediction()
