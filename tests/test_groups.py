"""Trajectories that start alike and part at a step: drawn, carried, refused if they cannot be."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from envs import DenoisingVectorEnv
from sft_rl.config import ResolvedConfig
from sft_rl.diffusion.noise import NoiseSchedule
from sft_rl.diffusion.schedule import step_schedule
from sft_rl.errors import UserError
from sft_rl.jobs.build import build_runner
from sft_rl.policy import DenoisingPolicy, to_arrays
from sft_rl.rollout.runner import LocalCollector, Request, RolloutRunner
from sft_rl.types import Trajectories

TinyConfig = Callable[..., ResolvedConfig]
GROUPS = ("rollout.group_size=4", "training.batch_size=16")


def draw(config: ResolvedConfig, num_shards: int, iteration: int = 0) -> list[Trajectories]:
    torch.manual_seed(0)
    runner = build_runner(config)
    collector = LocalCollector(runner, num_threads=1)
    collector.submit(Request(iteration, 0, to_arrays(runner.policy), num_shards))
    return list(collector.results())


@pytest.mark.parametrize("branch", [0, 1, 3])
def test_a_group_shares_its_way_up_to_the_branch(tiny_config: TinyConfig, branch: int):
    config = tiny_config(*GROUPS, f"rollout.branch_step={branch}", "rollout.shards_per_batch=2")
    both = Trajectories.concatenate(draw(config, 2))
    latents = both.latents.reshape(5, 4, 4, 2)  # T + 1, groups, members
    spread = latents.std(dim=2).amin(dim=(1, 2))
    assert (both.group_size, both.branch_step.tolist()) == (4, [branch] * 16)
    assert (spread[: branch + 1] == 0).all()
    assert (spread[branch + 1 :] > 0).all()
    assert latents[0, :, 0].unique(dim=0).shape[0] == 4  # groups are different ones
    steps = torch.arange(4)[:, None]
    torch.manual_seed(0)
    rescored = build_runner(config).policy.log_prob(both.latents[:-1], both.latents[1:], steps)
    torch.testing.assert_close(rescored, both.log_probs, atol=1e-3, rtol=1e-4)
    again = Trajectories.concatenate(
        [Trajectories.from_numpy(s.to_numpy()) for s in draw(config, 2)]
    )
    assert torch.equal(again.latents, both.latents)
    assert torch.equal(again.branch_step, both.branch_step)
    assert again.group_size == 4


def test_a_cycle_takes_every_step_in_turn(tiny_config: TinyConfig):
    config = tiny_config(*GROUPS, "rollout.branch_step=cycle")
    turns = [[int(s.branch_step[0]) for s in draw(config, 3, iteration=i)] for i in range(2)]
    assert turns == [[0, 1, 2], [1, 2, 3]]


class Conditional(nn.Module):
    """A noise prediction that depends on the class."""

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return x * labels[..., None] / 10


def test_a_groups_members_are_of_one_class(tiny_config: TinyConfig):
    config = tiny_config()
    schedule = step_schedule(NoiseSchedule.from_config(config.noise), config.sampler)
    policy = DenoisingPolicy(Conditional(), schedule, shape=(2,), num_classes=10)
    env = DenoisingVectorEnv(num_envs=16, num_steps=4, shape=(2,), num_classes=10, array="torch")
    runner = RolloutRunner(env, policy, seed=0, group_size=4, branch_step=2)
    shard = runner.collect(0, 0)
    labels = shard.labels.reshape(-1, 4)
    assert (labels == labels[:, :1]).all()
    assert labels[:, 0].unique().numel() > 1
    steps = torch.arange(4)[:, None]
    rescored = policy.log_prob(shard.latents[:-1], shard.latents[1:], steps, shard.labels)
    torch.testing.assert_close(rescored, shard.log_probs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("rollout.group_size=5",), "rollout.group_size: must divide a shard of 32 .*, got 5"),
        (
            ("rollout.group_size=32", "rollout.shards_per_batch=2"),
            "rollout.group_size: must divide a shard of 16 .*, got 32",
        ),
        ((*GROUPS, "rollout.branch_step=4"), "rollout.branch_step: must be 0 to 3, .*, got 4"),
        (("rollout.branch_step=1",), "rollout.branch_step: 1 parts groups"),
        (("rollout.branch_step=-1",), "rollout.branch_step: must be a step, 0 or .*, got -1"),
        (("rollout.branch_step=all",), "rollout.branch_step: must be a step, .*, got 'all'"),
        (("sft_pg.baseline=group",), "rollout.group_size: the baseline 'group' of .* needs groups"),
    ],
)
def test_groups_that_do_not_fit_are_refused(
    tiny_config: TinyConfig, settings: tuple[str, ...], message: str
):
    with pytest.raises(UserError, match=message) as error:
        tiny_config(*settings)
    assert "\n" not in str(error.value)
