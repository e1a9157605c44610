"""Chains drawn at one go are the chains of a walk step by step."""

from collections.abc import Callable

import pytest
import torch

from sft_rl.config import Config, ResolvedConfig
from sft_rl.config.files import load_config
from sft_rl.errors import UserError
from sft_rl.jobs.build import build_runner
from sft_rl.policy import to_arrays
from sft_rl.rollout.runner import RolloutRunner
from sft_rl.runs.parts import network_of, networks_of
from sft_rl.runs.resolve import resolve
from sft_rl.types import Trajectories

TinyConfig = Callable[..., ResolvedConfig]


@pytest.fixture
def tiny_by_class(tiny_digits: tuple[str, ...]) -> TinyConfig:
    """Build a configuration of a tiny class-conditional model."""
    classes = "model.unet.num_class_embeds=10"
    return lambda *settings: resolve(load_config("digits", [*tiny_digits, classes, *settings]))[0]


def shards(config: Config) -> list[Trajectories]:
    """Draw two shards with one version's weights and one with the next's."""
    runner: RolloutRunner = build_runner(config)
    drawn = []
    for seed in range(2):
        torch.manual_seed(seed)
        policy = networks_of(config, network_of(config)).policy
        runner.load(seed, to_arrays(policy))
        drawn += [runner.collect(0, shard) for shard in range(2 - seed)]
    return drawn


def compare(tiny_config: TinyConfig, *settings: str) -> None:
    config = tiny_config(*settings)
    graphs = config.rollout.model_copy(update={"cuda_graphs": True})  # refused without a GPU
    at_once = shards(config.model_copy(update={"rollout": graphs}))
    for ours, theirs in zip(at_once, shards(tiny_config(*settings)), strict=True):
        assert (ours.labels is None) == (theirs.labels is None)
        if ours.labels is not None and theirs.labels is not None:
            assert torch.equal(ours.labels, theirs.labels)
        assert ours.policy_version == theirs.policy_version
        assert torch.equal(ours.latents, theirs.latents)
        assert torch.equal(ours.log_probs, theirs.log_probs)
        assert torch.equal(ours.rewards, theirs.rewards)
        assert not ours.latents.is_inference()  # the learner differentiates through them


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_steps_at_once_are_the_same_steps(tiny_config: TinyConfig, dtype: str):
    """The steps themselves, without a GPU."""
    compare(tiny_config, f"rollout.latent_dtype={dtype}")


def test_with_labels_too(tiny_by_class: TinyConfig):
    compare(tiny_by_class)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_draws_the_same_chains(tiny_config: TinyConfig, tiny_by_class: TinyConfig):
    compare(tiny_config, "device=cuda", "rollout.latent_dtype=bfloat16")
    compare(tiny_by_class, "device=cuda")


def test_rollouts_on_a_cpu_are_refused(tiny_config: TinyConfig):
    with pytest.raises(UserError, match=r"rollout\.cuda_graphs: needs rollouts on a GPU"):
        tiny_config("rollout.cuda_graphs=true", "device=cpu")
