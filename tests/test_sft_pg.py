"""SFT-PG's update, and the faults of the released code that must not come back."""

from collections.abc import Callable

import pytest
import torch

from sft_rl.algorithms import Networks
from sft_rl.config import Config, ResolvedConfig
from sft_rl.data import Dataset, load_dataset
from sft_rl.jobs.build import build_runner
from sft_rl.policy import to_arrays
from sft_rl.runs.parts import algorithm_of, learner_of, network_of, networks_of
from sft_rl.types import Trajectories


def setup(config: Config) -> tuple[Networks, Trajectories, Dataset]:
    torch.manual_seed(0)
    data = load_dataset(config.data)
    networks = networks_of(config, network_of(config))
    runner = build_runner(config)
    runner.load(0, to_arrays(networks.policy))
    return networks, runner.collect(iteration=0, shard=0), data


def test_the_steps_of_an_iteration_take_disjoint_transitions(
    tiny_config: Callable[..., ResolvedConfig],
):
    config = tiny_config("training.n_generator=4")
    networks, trajectories, _ = setup(config)
    update = algorithm_of(config)
    prepared = update.prepare(trajectories, networks)
    batches = list(update.batches(prepared, torch.Generator().manual_seed(0)))
    actions = torch.cat([batch.actions for batch in batches])
    assert len(batches) == 4
    assert len(torch.unique(actions, dim=0)) == len(actions) == prepared.advantages.numel()


def test_the_papers_minibatch_is_that_many_transitions(tiny_config: Callable[..., ResolvedConfig]):
    config = tiny_config("sft_pg.transitions_per_update=10")
    networks, trajectories, _ = setup(config)
    update = algorithm_of(config)
    prepared = update.prepare(trajectories, networks)
    (batch,) = update.batches(prepared, torch.Generator().manual_seed(0))
    assert batch.advantages.shape == (10,)


def test_the_value_loss_does_not_reach_the_critic(tiny_config: Callable[..., ResolvedConfig]):
    config = tiny_config()
    networks, trajectories, data = setup(config)
    learner = learner_of(config, networks, data)
    before = {name: p.clone() for name, p in networks.critic.named_parameters()}
    value_before = [p.clone() for p in networks.value.parameters()]
    learner.update_value(trajectories, networks.critic(trajectories.final))
    assert all(p.grad is None for p in networks.critic.parameters())
    assert all(torch.equal(p, before[name]) for name, p in networks.critic.named_parameters())
    assert any(
        not torch.equal(p, old)
        for p, old in zip(networks.value.parameters(), value_before, strict=True)
    )


@pytest.mark.parametrize(("num_real", "num_generated"), [(7, 7), (7, 3), (3, 8), (1, 1)])
def test_odd_and_short_batches_are_split_at_the_right_place(
    tiny_config: Callable[..., ResolvedConfig], num_real: int, num_generated: int
):
    """The released code took generated samples for real ones in a short last batch."""
    networks, trajectories, data = setup(tiny_config())
    real, generated = data.train[:num_real], trajectories.final[:num_generated]
    critic = networks.critic
    loss = critic.loss(real, generated, torch.Generator().manual_seed(0))
    expected = critic(real).mean() - critic(generated).mean()
    torch.testing.assert_close(loss.metrics["critic_gap"], expected.detach())


def test_the_policy_step_leaves_critic_and_value_alone(tiny_config: Callable[..., ResolvedConfig]):
    config = tiny_config("algorithm=pathwise")
    networks, trajectories, data = setup(config)
    learner = learner_of(config, networks, data)
    learner.update_policy(trajectories, iteration=0)
    for module in (networks.critic, networks.value):
        assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_advantages_are_the_score_without_baseline(tiny_config: Callable[..., ResolvedConfig]):
    config = tiny_config("sft_pg.baseline=none", "sft_pg.normalise_advantages=none")
    networks, trajectories, _ = setup(config)
    prepared = algorithm_of(config).prepare(trajectories, networks)
    scores = networks.critic(trajectories.final).detach()
    assert torch.equal(prepared.advantages, scores.expand_as(prepared.advantages))
    assert not prepared.advantages.requires_grad
