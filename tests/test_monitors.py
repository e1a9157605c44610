"""Monitors: what they measure, in closed form; that the alarm saves a run's last good state."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from sft_rl.algorithms import Networks
from sft_rl.algorithms.sft_pg import SFTPG
from sft_rl.cli import main
from sft_rl.config import Config, ResolvedConfig
from sft_rl.critics import Critic
from sft_rl.diffusion.reverse import gaussian_kl
from sft_rl.diffusion.schedule import StepSchedule
from sft_rl.jobs.build import build_runner
from sft_rl.learning.monitors import (
    PATIENCE,
    Alarm,
    TrainingAlarm,
    baseline_quality,
    critic_slope,
    drift,
    explained_variance,
    signal_to_noise,
)
from sft_rl.learning.team import Team
from sft_rl.policy import DenoisingPolicy, to_arrays
from sft_rl.rewards import Objective, Term
from sft_rl.runs.parts import algorithm_of, network_of, networks_of
from sft_rl.storage.checkpoint import load
from sft_rl.types import Loss, Trajectories, Transitions


def setup(config: Config) -> tuple[Networks, Trajectories]:
    """Networks, and trajectories that a rollout worker drew with the same weights."""
    torch.manual_seed(0)
    networks = networks_of(config, network_of(config))
    runner = build_runner(config)
    runner.load(0, to_arrays(networks.policy))
    return networks, runner.collect(iteration=0, shard=0)


@pytest.mark.parametrize("algorithm", ["sft_pg", "ppo", "hybrid"])
def test_the_ratio_is_one_at_every_step_index(
    tiny_config: Callable[..., ResolvedConfig], algorithm: str
):
    """To float32: an error of the mean, relative to a step's sigma, is an error of log pi."""
    config = tiny_config(f"algorithm={algorithm}", "training.batch_size=256")
    networks, trajectories = setup(config)
    update = algorithm_of(config)
    seen = torch.zeros(4, dtype=torch.int64)
    batches = update.batches(update.prepare(trajectories, networks), torch.Generator())
    for _ in range(update.options.num_minibatches if algorithm == "ppo" else 1):
        batch = next(batches)
        ratio = update.loss(batch, networks).metrics["ratio"]
        steps = batch.transitions.step_index if algorithm == "hybrid" else batch.step_index
        steps = steps.expand(ratio.shape)
        for k in range(4):
            deviation = (ratio[steps == k] - 1.0).abs()
            seen[k] += len(deviation)
            allowed = 4e-6 / networks.policy.std[k].item()
            assert len(deviation) == 0 or deviation.max().item() < allowed
    assert (seen[:3] > 0).all()


def test_drift_and_kl_in_closed_form(tiny_config: Callable[..., ResolvedConfig]):
    config = tiny_config("sampler.learn_std=false")
    networks, trajectories = setup(config)
    still = drift(trajectories, networks)
    assert max(still[f"log_prob_drift_{k}"] for k in range(4)) < 1e-3
    assert still["kl_to_pretrained"] == pytest.approx(0.0, abs=1e-5)
    shift = 0.01
    with torch.no_grad():
        networks.policy.network.output.bias += (
            shift  # moves the mean of step k by coef_output[k] * shift
        )
    moved = drift(trajectories, networks)
    policy, x = networks.policy, trajectories.latents
    move = policy.coef_output * shift
    for k in range(4):
        mean = networks.pretrained.mean(x[k], torch.tensor(k))
        z, step = (x[k + 1] - mean) / policy.std[k], move[k] / policy.std[k]
        change = (-0.5 * (z - step) ** 2 + 0.5 * z**2).sum(1)
        assert moved[f"log_prob_drift_{k}"] == pytest.approx(change.abs().mean().item(), rel=1e-2)
    kl = gaussian_kl(move[:, None] + torch.zeros(4, 2), *_columns(policy.std), event_ndim=1)
    assert moved["kl_to_pretrained"] == pytest.approx(kl.mean().item(), rel=1e-3)


def _columns(std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return std[:, None], torch.zeros(len(std), 2), std[:, None]


class Inclined(Critic):
    """f(x) = 3 x + 4 y has gradient norm 5 everywhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.tensor([3.0, 4.0])


def test_the_critics_slope_in_closed_form(tiny_config: Callable[..., ResolvedConfig]):
    networks, trajectories = setup(tiny_config())
    inclined = replace(networks, critic=Inclined())
    assert critic_slope(trajectories, inclined) == {"critic_slope": pytest.approx(5.0)}
    flat = replace(networks, objective=Objective([Term(score=lambda x: x[:, 0])]))
    assert critic_slope(trajectories, flat) == {}


class Known(nn.Module):
    """V(s) = f(s) times a factor, plus a constant."""

    def __init__(self, critic: Critic, factor: float) -> None:
        super().__init__()
        self.critic, self.factor = critic, factor

    def forward(self, x: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        scores = self.critic(x.flatten(0, 1)).reshape(x.shape[:2])
        return (self.factor * scores + 7.0)[..., None]


@pytest.mark.parametrize(
    ("factor", "explained"), [(0.0, 0.0), (1.0, 1.0), (0.5, 0.75), (2.0, 0.0), (-1.0, -3.0)]
)
def test_what_a_baseline_explains_in_closed_form(
    tiny_config: Callable[..., ResolvedConfig], factor: float, explained: float
):
    """1 - (1 - factor)^2, of chains that stand still: every state has the final score."""
    config = tiny_config("sft_pg.baseline=value")
    networks, trajectories = setup(config)
    networks = replace(networks, critic=Inclined(), value=Known(Inclined(), factor))
    still = replace(trajectories, latents=trajectories.final.expand_as(trajectories.latents))
    watched = baseline_quality(still, networks, algorithm_of(config), Team())
    for k in range(4):
        assert watched[f"explained_variance_{k}"] == pytest.approx(explained, abs=1e-4)


def test_noise_as_a_baseline_explains_less_than_nothing():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(40_000, generator=generator)
    values = 2.0 * torch.randn(3, 40_000, generator=generator)
    torch.testing.assert_close(
        explained_variance(values, scores), torch.full((3,), -4.0), atol=0.15, rtol=0.0
    )
    assert explained_variance(values, torch.ones(40_000)).tolist() == [0.0] * 3


def test_signal_to_noise_has_no_bias():
    """Mean of many halves' estimates: |g|^2 over the trace of the whole batch's covariance."""
    generator = torch.Generator().manual_seed(0)
    signal, dim, noise = 1.0, 400, 2.0
    estimates = []
    for _ in range(400):
        halves = signal + noise * torch.randn(2, dim, generator=generator)
        estimates.append(signal_to_noise(*halves))
    expected = dim * signal**2 / (dim * noise**2 / 2)
    error = torch.tensor(estimates).std().item() / 20
    assert abs(sum(estimates) / 400 - expected) < 4 * error < 0.1 * expected
    assert signal_to_noise(torch.ones(3), torch.ones(3)) == 0.0


class Bias(nn.Module):
    """Predicts the same noise everywhere."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.bias.expand_as(x)


class Offset(Critic):
    """f(x) = m + the sum of x over the root of its dimension."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3.0 + x.sum(1) / x.shape[1] ** 0.5


class Constant(nn.Module):
    def forward(self, x: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        return torch.full((*x.shape[:2], 1), 3.0)


def test_the_gradients_signal_to_noise_in_closed_form(
    tiny_config: Callable[..., ResolvedConfig],
):
    """One step from 0 to x = z: g = f z, |E g|^2 = 1, tr Var g = D (1 + m^2) + 1 a trajectory."""
    dim, num = 300, 6000
    schedule = StepSchedule(
        timesteps=np.zeros(1),
        coef_x=np.ones(1),
        coef_output=np.ones(1),
        std=np.ones(1),
        alpha_bar=np.ones(1),
    )
    policy = DenoisingPolicy(Bias(dim), schedule, shape=(dim,))
    x = torch.randn(num, dim, generator=torch.Generator().manual_seed(0))
    latents = torch.stack([torch.zeros_like(x), x])
    drawn = Trajectories(latents, torch.zeros(1, num), torch.zeros(0, num), policy_version=0)
    networks = Networks(policy, Offset(), Constant(), pretrained=policy)
    config = tiny_config(
        "sft_pg.baseline=value", "sampler.num_steps=1", "training.micro_batch_size=1000"
    )
    watched = baseline_quality(drawn, networks, algorithm_of(config), Team())
    assert watched["policy_grad_snr"] == pytest.approx(num / (dim + 1), rel=0.1)
    assert watched["policy_grad_snr_raw"] == pytest.approx(num / (10 * dim + 1), rel=0.1)
    assert watched["explained_variance_0"] == pytest.approx(0.0, abs=1e-6)
    assert policy.network.bias.grad is None


def test_the_alarm_has_patience_with_odd_samples_and_none_with_odd_numbers():
    fine = {"iteration": 1.0, "sample_spread": 1.0, "critic_gap": 0.1}
    alarm = Alarm()
    alarm.check(fine)
    for spread in (0.01, 50.0):
        for _ in range(PATIENCE - 1):
            alarm.check({**fine, "sample_spread": spread})
            assert not alarm.is_quiet
        alarm.check(fine)
        assert alarm.is_quiet
    for _ in range(PATIENCE - 1):
        alarm.check({**fine, "sample_spread": 0.01})
    with pytest.raises(TrainingAlarm, match=r"spread is 0.01 \(data: 1\) since 20 iterations"):
        alarm.check({**fine, "sample_spread": 0.01})
    with pytest.raises(TrainingAlarm, match="critic_gap is nan in iteration 1"):
        Alarm().check({**fine, "critic_gap": float("nan")})


ADVICE = (
    "checkpoints from before are kept; try a lower policy.learning_rate, a higher "
    "critic.penalty_weight or more training.n_critic"
)


def alarm_of(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What stopped a run, without the advice."""
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sft-rl: training stopped: ")
    assert line.endswith(f"; {ADVICE}")
    return line.removeprefix("sft-rl: training stopped: ").removesuffix(f"; {ADVICE}")


class Apart(SFTPG):
    """Slides down a plane: Adam moves the two output biases apart by the learning rate each time.

    No other parameter moves, so the samples' spread grows in proportion to the iterations.
    """

    def loss(self, batch: Transitions, networks: Networks) -> Loss:
        bias = networks.policy.network.output.bias
        return Loss(bias[0] - bias[1], {})


def drift_apart(out: Path, *settings: str) -> list[str]:
    """The command of a run whose policy is sure to go wrong, on any processor."""
    return ["train", "swiss_roll", *settings, f"algorithm={__name__}:Apart", "--out", str(out)]


def test_a_run_whose_samples_fly_apart_is_stopped_and_keeps_what_was_good(
    tmp_path: Path, tiny_settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    settings = ("training.num_iterations=100", "training.checkpoint_every=1")
    command = drift_apart(out, *tiny_settings, *settings, "policy.learning_rate=5")
    assert "the samples' spread is " in alarm_of(command, capsys)
    assert not (out / "summary.json").exists()
    spread = pd.read_csv(out / "metrics.csv")["sample_spread"]
    saved = load(max((out / "checkpoints").iterdir())).meta["iteration"]
    assert 0 < saved < len(spread)
    assert spread[saved - 1] < 20.0
    assert (spread[saved:] > 20.0).all()
    assert main(["sample", str(out), "--num", "500", "--out", str(tmp_path / "x.csv")]) == 0
    assert pd.read_csv(tmp_path / "x.csv").abs().max().max() < 5.0


@pytest.mark.parametrize(
    ("eval_every", "what"),
    [
        (1, "log_prob_drift_0 is inf in iteration 1"),
        (9, "an action is not finite in iteration 2"),
    ],
)
def test_a_run_whose_numbers_are_not_finite_is_stopped_at_once(
    tmp_path: Path,
    tiny_settings: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    eval_every: int,
    what: str,
):
    out = tmp_path / "run"
    beyond_float32 = ("policy.learning_rate=1e39", f"training.eval_every={eval_every}")
    command = drift_apart(out, *tiny_settings, *beyond_float32)
    assert alarm_of(command, capsys) == what
    assert list(out.glob("checkpoints/*")) == []


class Shifted(SFTPG):
    """SFT-PG that takes the log-probs of the rollouts for other than they were."""

    def prepare(self, trajectories: Trajectories, networks: Networks) -> Transitions:
        prepared = super().prepare(trajectories, networks)
        prepared.old_log_probs.sub_(0.1)
        return prepared

    def loss(self, batch: Transitions, networks: Networks) -> Loss:
        return super().loss(batch, networks)


def test_a_ratio_off_one_is_a_warning_in_runs(
    tmp_path: Path, tiny_settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    command = ["train", "swiss_roll", *tiny_settings, "training.num_iterations=2"]
    assert main([*command, "--out", str(tmp_path / "sound")]) == 0
    assert "warning" not in capsys.readouterr().out
    shifted = [*command, f"algorithm={__name__}:Shifted", "--out", str(tmp_path / "shifted")]
    assert main(shifted) == 0
    said = " ".join(capsys.readouterr().out.split())
    for iteration in (1, 2):
        assert f"warning: iteration {iteration}: the likelihood ratio is off 1 by 0.105" in said


def test_every_number_of_the_glossary_is_logged(tmp_path: Path, tiny_settings: tuple[str, ...]):
    """What the issue of health asks for stands in metrics.csv without being asked for."""
    out = tmp_path / "run"
    assert main(["train", "swiss_roll", *tiny_settings, "--out", str(out)]) == 0
    rows = pd.read_csv(out / "metrics.csv")
    always = ["critic_gap", "critic_input_grad_norm", "reward_mean", "reward_std", "sample_spread"]
    assert rows[[*always, "first_ratio_deviation"]].notna().all().all()
    at_evaluations = [
        "critic_slope",
        "kl_to_pretrained",
        "policy_grad_snr",
        "policy_grad_snr_raw",
        *(f"log_prob_drift_{k}" for k in range(4)),
        *(f"explained_variance_{k}" for k in range(4)),
    ]
    assert rows[at_evaluations].notna().all(axis=1).tolist() == [False, True, True]
    text = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
    for column in rows.columns:
        name = re.sub(r"_\d+$", "_K", column)
        assert f"`{name}`" in text
