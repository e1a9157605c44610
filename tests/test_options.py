"""Critics, learned noise and deterministic samplers, as chosen on the command line: they train."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sft_rl.algorithms.pathwise import Chain
from sft_rl.cli import main
from sft_rl.config import ResolvedConfig
from sft_rl.runs.parts import algorithm_of, network_of, networks_of
from sft_rl.storage.checkpoint import TensorGroups, load


def train(out: Path, *settings: str) -> list[TensorGroups]:
    """Run the command; return the tensors of the last two checkpoints, an iteration apart."""
    assert main(["train", "swiss_roll", *settings, "--out", str(out)]) == 0
    return [load(folder).tensors for folder in sorted((out / "checkpoints").iterdir())]


def changed(before: TensorGroups, after: TensorGroups, group: str) -> set[str]:
    """Names of a group's tensors that training has changed."""
    return {k for k, v in after[group].items() if not torch.equal(v, before[group][k])}


@pytest.mark.parametrize("objective", ["hinge", "n2ce", "mmd", "sliced_wasserstein"])
def test_every_critic_trains(tmp_path: Path, tiny_settings: tuple[str, ...], objective: str):
    before, after = train(tmp_path / "run", *tiny_settings, f"critic.objective={objective}")
    assert changed(before, after, "policy") >= {"network.output.weight", "network.output.bias"}
    assert changed(before, after, "critic")  # its weights, or the batches it remembers


@pytest.mark.parametrize("algorithm", ["sft_pg", "ppo", "hybrid", "pathwise", "grpo"])
def test_every_algorithm_learns_the_noise_too(
    tmp_path: Path, tiny_settings: tuple[str, ...], algorithm: str
):
    settings = (*tiny_settings, "sampler.learn_std=true", f"algorithm={algorithm}")
    if algorithm == "grpo":
        settings += ("rollout.group_size=4", "grpo.window=null")
    before, after = train(tmp_path / "run", *settings)
    assert "log_std_scale" in changed(before, after, "policy")
    scale = after["policy"]["log_std_scale"]
    assert scale.shape == (3,)  # of T = 4 steps, the last stays as it is
    assert (scale != 0).all()


def test_pathwise_makes_a_deterministic_sampler_better(
    tmp_path: Path, tiny_settings: tuple[str, ...]
):
    deterministic = ("algorithm=pathwise", "sampler.eta=0", "sampler.final_std=0")
    longer = (
        "training.num_iterations=60",
        "policy.learning_rate=5e-3",
        "critic.learning_rate=2e-3",
        "critic.num_fourier=4",  # of the tiny critic: it learns the coarse shape sooner
    )
    train(tmp_path / "run", *tiny_settings, *deterministic, *longer)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["sliced_wasserstein_final"] < 0.7 * summary["sliced_wasserstein_initial"]


def test_checkpointed_activations_give_the_same_gradient(
    tiny_config: Callable[..., ResolvedConfig],
):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(8, 2, generator=generator)
    chain = Chain(start, torch.randn(4, 8, 2, generator=generator))
    gradients = []
    for kept in ("false", "true"):
        config = tiny_config("algorithm=pathwise", f"pathwise.checkpoint_activations={kept}")
        torch.manual_seed(0)
        networks = networks_of(config, network_of(config))
        algorithm_of(config).loss(chain, networks).value.backward()
        gradients.append([p.grad for p in networks.policy.network.parameters()])
    assert all(grad is not None and grad.abs().sum() > 0 for grad in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1])
