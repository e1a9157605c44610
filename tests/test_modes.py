"""Networks that score or sample are in evaluation mode; critic and value leave it to learn."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from sft_rl.cli import main
from sft_rl.config import ResolvedConfig
from sft_rl.config.files import load_config
from sft_rl.data import load_dataset
from sft_rl.jobs.build import build_runner
from sft_rl.learning.learner import Learner
from sft_rl.learning.monitors import critic_slope, drift
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.policy import to_arrays
from sft_rl.runs.folder import RunFolder
from sft_rl.runs.parts import full_step_network, learner_of, network_of, networks_of
from sft_rl.runs.resolve import resolve
from sft_rl.types import Trajectories


def learner_and_trajectories(config: ResolvedConfig) -> tuple[Learner, Trajectories]:
    torch.manual_seed(0)
    networks = networks_of(config, network_of(config))
    learner = learner_of(config, networks, load_dataset(config.data))
    runner = build_runner(config)
    runner.load(0, to_arrays(networks.policy))
    assert not runner.policy.network.training
    return learner, runner.collect(iteration=0, shard=0)


def in_training(learner: Learner) -> list[str]:
    """Modules of a learner that are in training mode."""
    networks = learner.networks
    modules: dict[str, nn.Module] = {
        "policy": networks.policy,
        "pretrained": networks.pretrained,
        "critic": networks.critic,
        "value": networks.value,
        "average": learner.average,
        "best": learner.best,
        "previous": learner.previous,
    }
    return [name for name, own in modules.items() if any(m.training for m in own.modules())]


def test_critic_and_value_are_in_training_mode_for_their_own_loss_only(
    tiny_config: Callable[..., ResolvedConfig],
):
    learner, trajectories = learner_and_trajectories(
        tiny_config("training.max_offpolicy_steps=1", "sft_pg.baseline=value")
    )
    modes: dict[str, list[bool]] = {"critic": [], "value": [], "policy": []}
    for name, seen in modes.items():
        network = getattr(learner.networks, name)
        network.register_forward_hook(lambda module, *_, seen=seen: seen.append(module.training))
        getattr(network, "network", network).register_forward_hook(
            lambda module, *_, seen=seen: seen.append(module.training)
        )
    assert in_training(learner) == []
    scores, _ = learner.update_critic(trajectories.final, 0, 0)
    assert set(modes["critic"][:-2]) == {True}  # the loss, its penalty
    assert modes["critic"][-2:] == [False, False]  # the scores
    learner.update_value(trajectories, scores)
    assert set(modes["value"]) == {True}
    for seen in modes.values():
        seen.clear()
    learner.update_policy(trajectories, 0)
    critic_slope(trajectories, learner.networks)
    drift(trajectories, learner.networks)
    assert [set(seen) for seen in modes.values()] == [{False}, {False}, {False}]
    assert in_training(learner) == []


def test_spectral_norm_iterates_in_the_critics_updates_only(
    tiny_config: Callable[..., ResolvedConfig],
):
    learner, trajectories = learner_and_trajectories(
        tiny_config("critic.regulariser=spectral_norm")
    )
    critic = learner.networks.critic

    def directions() -> dict[str, torch.Tensor]:
        return {name: buffer.clone() for name, buffer in critic.named_buffers()}

    start = directions()
    assert any(name.endswith("_u") for name in start)
    learner.update_policy(trajectories, 0)
    critic_slope(trajectories, learner.networks)
    assert all(torch.equal(buffer, start[name]) for name, buffer in directions().items())
    learner.update_critic(trajectories.final, 0, 0)
    assert not all(torch.equal(buffer, start[name]) for name, buffer in directions().items())


@pytest.fixture
def with_dropout(tiny_digits: tuple[str, ...], tiny_unet: dict[str, object]) -> tuple[str, ...]:
    return (*tiny_digits, "model.unet=" + json.dumps({**tiny_unet, "dropout": 0.5}))


def test_a_model_with_dropout_samples_the_same_from_the_same_seed(with_dropout: tuple[str, ...]):
    config, data = resolve(load_config("digits", with_dropout))
    network, _ = full_step_network(config, data)
    networks, evaluator = networks_of(config, network), Evaluator(data, config.metrics)
    for policy in (networks.policy, networks.pretrained):
        first, second = (evaluator.samples(policy) for _ in range(2))
        np.testing.assert_array_equal(first, second)


def test_a_run_with_dropout_starts_at_ratio_one_and_its_result_is_the_same_twice(
    tmp_path: Path, with_dropout: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    settings = (*with_dropout, "metrics.distance=sliced_wasserstein", "algorithm=sft_pg")
    assert main(["train", "digits", *settings, "--out", str(out)]) == 0
    assert "likelihood ratio is off" not in " ".join(capsys.readouterr().out.split())
    assert pd.read_csv(out / "metrics.csv")["first_ratio_deviation"].max() < 1e-3
    final = json.loads((out / "summary.json").read_text())["sliced_wasserstein_final"]
    policy, _ = RunFolder.open(out).result()
    assert not any(module.training for module in policy.modules())
    assert main(["evaluate", str(out)]) == 0
    assert f"{final:.4f}" in capsys.readouterr().out


class Dropping(nn.Module):
    """A user's network, in training mode as it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_a_network_from_python_is_copied_into_evaluation_mode(tiny_settings: tuple[str, ...]):
    own = Dropping()
    config, data = resolve(load_config("swiss_roll", tiny_settings), network=own)
    network, _ = full_step_network(config, data, own=own)
    assert not any(module.training for module in network.modules())
    assert all(module.training for module in own.modules())  # theirs stays as it is
