"""Branches that are compared, trust regions that hold, and samples that are drawn to or away."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sft_rl.algorithms import Networks
from sft_rl.algorithms.advantages import within_groups
from sft_rl.config import ResolvedConfig, TermConfig
from sft_rl.data import load_dataset
from sft_rl.errors import UserError
from sft_rl.jobs.build import build_runner
from sft_rl.learning.monitors import baseline_quality, drift, staleness
from sft_rl.learning.team import Team
from sft_rl.policy import to_arrays
from sft_rl.rewards import Objective, Reward, Term
from sft_rl.runs.parts import algorithm_of, learner_of, network_of, networks_of, schedule_of
from sft_rl.types import Trajectories

TinyConfig = Callable[..., ResolvedConfig]
GROUPS = ("algorithm=grpo", "rollout.group_size=4", "rollout.branch_step=1")


def parts(config: ResolvedConfig) -> tuple[Networks, Trajectories]:
    """Networks from a seed, and a shard that they drew."""
    torch.manual_seed(0)
    networks = networks_of(config, network_of(config))
    runner = build_runner(config)
    runner.policy.load_state_dict(networks.policy.state_dict())
    return networks, runner.collect(0, 0)


def gradient(value: Tensor, networks: Networks) -> Tensor:
    parameters = list(networks.policy.network.parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])


def test_advantages_are_those_over_the_groups_mean():
    scores = torch.tensor([1.0, 3.0, 10.0, 10.0])
    assert within_groups(scores, 2, scale="none").tolist() == [-1.0, 1.0, 0.0, 0.0]
    expected = torch.tensor([-(0.5**0.5), 0.5**0.5, 0.0, 0.0])
    torch.testing.assert_close(within_groups(scores, 2, scale="group"), expected)
    assert within_groups(scores, 2, scale="batch").std().item() == pytest.approx(1.0)


@pytest.mark.parametrize(("window", "steps"), [("1", [1]), ("2", [1, 2]), ("null", [1, 2, 3])])
def test_the_steps_of_the_window_learn(tiny_config: TinyConfig, window: str, steps: list[int]):
    config = tiny_config(*GROUPS, f"grpo.window={window}")
    networks, trajectories = parts(config)
    prepared = algorithm_of(config).prepare(trajectories, networks)
    index = prepared.transitions.step_index
    assert index.unique().tolist() == steps
    assert len(index) == len(steps) * len(trajectories)
    assert torch.equal(prepared.transitions.actions[:32], trajectories.latents[2])


def test_noise_may_be_left_in_the_window_alone(tiny_config: TinyConfig):
    settings = (*GROUPS, "grpo.window=2", "grpo.trust_region=1e-3", "sampler.learn_std=true")
    config = tiny_config(*settings, "sampler.eta=[0,1,0.5,0]", "sampler.final_std=0")
    networks, trajectories = parts(config)
    noisy = networks.policy.std > 0
    assert noisy.tolist() == [False, True, True, False]
    assert torch.equal(
        trajectories.log_probs != 0, noisy[:, None].expand_as(trajectories.log_probs)
    )
    algorithm = algorithm_of(config)
    prepared = algorithm.prepare(trajectories, networks)
    assert prepared.transitions.step_index.unique().tolist() == [1, 2]
    assert gradient(algorithm.loss(prepared, networks).value, networks).isfinite().all()
    with pytest.raises(UserError, match=r"needs noise in steps 1 to 3, got std \[0\.0, "):
        tiny_config(*GROUPS, "grpo.window=3", "sampler.eta=[0,1,0.5,0]", "sampler.final_std=0")
    with pytest.raises(UserError, match=r"sampler.eta: a list has one .*num_steps=4, got 2"):
        tiny_config(*GROUPS, "sampler.eta=[0,1]")


def test_noise_moves_with_the_window(tiny_config: TinyConfig):
    """Everywhere else the sampler is its own, here without noise; groups part where it is."""
    config = tiny_config(
        *GROUPS[:2],
        "rollout.branch_step=cycle",
        "grpo.window_eta=0.7",
        "sampler.eta=0",
        "sampler.final_std=0",
        "sampler.learn_std=false",
    )
    networks, _ = parts(config)
    policy, runner = networks.policy, build_runner(config)
    assert policy.std.tolist() == [0.0] * 4
    noisy = schedule_of(tiny_config("sampler.eta=0.7")).std
    algorithm = algorithm_of(config)
    for turn, branch in enumerate([0, 1, 2, 0]):  # the last step has no noise by any eta
        drawn = build_runner(config) if turn == 2 else runner  # as after --resume
        drawn.load(0, to_arrays(policy))
        t = drawn.collect(turn, 0)
        assert torch.equal((t.log_probs != 0).any(1), torch.arange(4) == branch)
        parted = (t.latents[:, 0] != t.latents[:, 1]).any(1)
        assert torch.equal(parted, torch.arange(5) > branch)
        for k in set(range(4)) - {branch}:
            expected = policy.mean(t.latents[k], torch.tensor(k))
            torch.testing.assert_close(t.latents[k + 1], expected)
        at = torch.tensor(branch + 4)
        assert policy.step_std(at).item() == pytest.approx(noisy[branch])
        prepared = algorithm.prepare(t, networks)
        assert len(prepared) == len(t)
        found = algorithm.loss(prepared, networks)
        torch.testing.assert_close(found.metrics["ratio"], torch.ones(len(t)))
        assert gradient(found.value, networks).abs().sum() > 0
        assert drift(t, networks)["kl_to_pretrained"] == 0
        assert staleness(t, networks)["effective_share_chain"] == pytest.approx(1, abs=1e-6)
        assert baseline_quality(t, networks, algorithm, Team())["policy_grad_snr"] != 0
    assert "noisier" not in policy.state_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["sampler.learn_std=true"], "set sampler.learn_std=false"),
        (["rollout.branch_step=3", "sampler.final_std=0"], "needs noise in steps 3 to 3"),
        (["rollout.branch_step=0", "rollout.cuda_graphs=true"], "without rollout.cuda_graphs"),
    ],
)
def test_a_window_without_noise_of_its_own_is_refused(
    tiny_config: TinyConfig, settings: list[str], message: str
):
    with pytest.raises(UserError, match=message):
        tiny_config(*GROUPS, "grpo.window_eta=0.7", "sampler.learn_std=false", *settings)


def test_the_trust_region_drops_what_still_moves_away(tiny_config: TinyConfig):
    """And nothing else: what is on its way back keeps its gradient."""
    config = tiny_config(*GROUPS, "grpo.trust_region=1e-9", "grpo.window=null")
    networks, trajectories = parts(config)
    algorithm = algorithm_of(config)
    prepared = algorithm.prepare(trajectories, networks)
    there = algorithm.loss(prepared, networks)
    assert there.metrics["dropped_fraction"] == 0
    with torch.no_grad():
        for p in networks.policy.network.parameters():
            p.add_(0.01)
    found = algorithm.loss(prepared, networks)
    t = prepared.transitions
    ratio = (networks.policy.log_prob(t.latents, t.actions, t.step_index) - t.old_log_probs).exp()
    returning = (ratio - 1.0) * t.advantages <= 0
    by_hand = -(ratio * t.advantages * returning).mean()
    assert 0.2 < found.metrics["dropped_fraction"] < 0.8
    assert found.metrics["dropped_fraction"] == (~returning).float().mean()
    torch.testing.assert_close(gradient(found.value, networks), gradient(by_hand, networks))
    wide = tiny_config(*GROUPS, "grpo.trust_region=1e9", "grpo.window=null")
    assert algorithm_of(wide).loss(prepared, networks).metrics["dropped_fraction"] == 0


def test_nft_at_the_old_policy_is_denoising_weighted_by_quality(tiny_config: TinyConfig):
    config = tiny_config("algorithm=nft", "nft.beta=0.7")
    networks, trajectories = parts(config)
    algorithm = algorithm_of(config)
    algorithm.begin(networks)
    source = torch.Generator().manual_seed(0)
    (batch,) = algorithm.batches(algorithm.prepare(trajectories, networks), source)
    assert (batch.quality.min(), batch.quality.max()) == (0.0, 1.0)
    expected = networks.policy.expected_final(batch.latents, batch.step_index)
    error = expected - batch.samples
    weight = 0.7 * (2.0 * batch.quality - 1.0) / (error.detach().abs().mean(1) + 1e-5)
    by_hand = (weight * error.square().mean(1)).mean()
    found = algorithm.loss(batch, networks)
    assert found.metrics["prediction_change"] == 0
    torch.testing.assert_close(gradient(found.value, networks), gradient(by_hand, networks))


def test_the_old_policy_of_nft_draws_and_follows(tiny_config: TinyConfig):
    config = tiny_config("algorithm=nft", "nft.old_decay=0.75")
    networks, trajectories = parts(config)
    learner = learner_of(config, networks, load_dataset(config.data))
    name = "network.input.weight"
    expected = learner.weights()[name].copy()
    for iteration in range(3):
        learner.update_policy(trajectories, iteration)
        new = networks.policy.state_dict()[name].numpy()
        expected = 0.75 * expected + 0.25 * new
        np.testing.assert_allclose(learner.weights()[name], expected, rtol=1e-5, atol=1e-7)
    assert not np.allclose(expected, new)


def to_the_right(samples: Tensor) -> Tensor:
    """Known at whole tenths alone: it has no gradient."""
    return samples[:, 0].detach().mul(10).round()


def test_nft_moves_a_deterministic_sampler_by_a_reward_without_a_gradient(tiny_config: TinyConfig):
    faster = ("policy.learning_rate=1e-2", "training.batch_size=128", "training.lr_decay=none")
    config = tiny_config(
        "algorithm=nft", "sampler.eta=0", "sampler.final_std=0", "nft.old_decay=0.25", *faster
    )
    torch.manual_seed(0)
    reward = Term(TermConfig(use="own:reward"), Reward(to_the_right, name="own"), False)
    networks = networks_of(config, network_of(config), Objective([reward]))
    learner = learner_of(config, networks, load_dataset(config.data))
    runner = build_runner(config)
    means = []
    for iteration in range(30):
        runner.load(learner.version, learner.weights())
        trajectories = runner.collect(iteration, 0)
        means.append(trajectories.final[:, 0].mean().item())
        paid = networks.objective.fixed_scores(trajectories.final)
        learner.update_policy(replace(trajectories, rewards=paid), iteration)
    assert sum(means[-5:]) / 5 > sum(means[:5]) / 5 + 0.5
