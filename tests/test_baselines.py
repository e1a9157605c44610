"""Baselines lower the variance of the policy gradient, and leave its mean."""

import numpy as np
import pytest
import torch
from chains import (
    Bump,
    NoValue,
    Parabola,
    drawn_by,
    estimates,
    largest_z,
    quantile,
    two_step_policy,
)
from torch import Tensor, nn

from sft_rl.algorithms import Networks
from sft_rl.algorithms.baselines import baseline_values, leave_one_out, means_of_others
from sft_rl.config import TermConfig
from sft_rl.critics import Critic
from sft_rl.diffusion.schedule import from_levels
from sft_rl.policy import DenoisingPolicy
from sft_rl.rewards import Objective, Term


class ExactValue(nn.Module):
    """V(s_k) = E[f | s_k] of the affine chain under f(x) = x^2, times a factor."""

    def __init__(self, policy: DenoisingPolicy, factor: float) -> None:
        super().__init__()
        self.policy = policy
        self.factor = factor

    def forward(self, latents: Tensor, step_index: Tensor) -> Tensor:
        first, last = torch.tensor(0), torch.tensor(1)
        std = self.policy.std
        slope = (
            self.policy.coef_x[1] + self.policy.coef_output[1] * self.policy.network.weight[0, 0]
        )
        mean_from_start = self.policy.mean(self.policy.mean(latents[0], first), last)
        from_start = mean_from_start**2 + (slope * std[0]) ** 2 + std[1] ** 2
        from_middle = self.policy.mean(latents[1], last) ** 2 + std[1] ** 2
        return self.factor * torch.stack([from_start, from_middle])


def test_the_baseline_changes_the_variance_and_not_the_mean():
    policy = two_step_policy(1, squash=False)
    values = [NoValue(), ExactValue(policy, 1.0), ExactValue(policy, -2.0)]
    _, (plain, helped, harmed) = estimates(policy, Parabola(), values)
    allowed = quantile(plain.shape[1])
    assert largest_z(helped - plain) < allowed
    assert largest_z(harmed - plain) < allowed
    spread = [found.var(axis=0).sum() for found in (plain, helped, harmed)]
    assert spread[1] < 0.5 * spread[0]
    assert spread[2] > 2.0 * spread[0]


@pytest.mark.parametrize(("dim", "squash"), [(1, True), (2, True)])
def test_the_look_ahead_changes_the_variance_and_not_the_mean(dim: int, squash: bool):
    """With batches of 8 a regression that saw its own row would show."""
    policy = two_step_policy(dim, squash=squash)
    pathwise, (plain, ahead) = estimates(policy, Bump(), ["none", "look_ahead"], batch_size=8)
    assert largest_z(ahead - pathwise) < quantile(pathwise.shape[1])
    pathwise, (plain, ahead) = estimates(policy, Bump(), ["none", "look_ahead"])
    assert largest_z(ahead - pathwise) < quantile(pathwise.shape[1])
    assert ahead.var(axis=0).sum() < 0.5 * plain.var(axis=0).sum()


@pytest.mark.parametrize("branch", [0, 1])
def test_the_others_of_a_group_change_the_variance_and_not_the_mean(branch: int):
    policy, names = two_step_policy(2, squash=True), ["none", "group"]
    pathwise, (plain, group) = estimates(
        policy, Bump(), names, batch_size=12, group_size=4, branch=branch
    )
    assert largest_z(group - pathwise) < quantile(pathwise.shape[1])
    assert group.var(axis=0).sum() < 0.8 * plain.var(axis=0).sum()


def test_others_are_counted_by_hand():
    inside, outside = means_of_others(torch.tensor([1.0, 3.0, 5.0, 10.0, 20.0, 60.0]), 3)
    assert inside.tolist() == [4.0, 3.0, 2.0, 40.0, 35.0, 15.0]
    assert outside.tolist() == [30.0] * 3 + [3.0] * 3


def test_each_row_is_predicted_from_the_others():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    features[2] = 1.5  # nothing to go by: the others' mean
    scores = torch.randn(7, generator=generator, dtype=torch.float64)
    found = leave_one_out(features, scores)
    for i in range(7):
        others = np.delete(np.arange(7), i)
        for k in range(2):
            line = np.polyfit(features[k, others], scores[others], deg=1)
            assert found[k, i].item() == pytest.approx(np.polyval(line, features[k, i]))
        assert found[2, i].item() == pytest.approx(scores[others].mean().item())


@pytest.mark.parametrize("num", [1, 2])
def test_too_few_rows_have_nothing_to_be_predicted_from(num: int):
    assert leave_one_out(torch.arange(num)[None].float(), torch.ones(num)).tolist() == [[0.0] * num]


def test_the_look_ahead_at_the_last_step_is_the_score_of_the_mean():
    """There is one step left, so E[x_T | s] is the mean of the step, if its levels say so."""
    policy = two_step_policy(2, squash=True)
    schedule = from_levels(np.array([1.0, 0.0]), np.array([0.5, 0.8]), final_std=0.01)
    policy = DenoisingPolicy(policy.network, schedule, shape=(2,)).double()
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    last = torch.tensor(1)
    drawn = policy.act(x, last, torch.zeros_like(x))
    torch.testing.assert_close(drawn.expected, policy.mean(x, last))


class Digital(Critic):
    """A reward without a gradient, in numpy; of labels it likes the even ones."""

    def forward(self, x: Tensor, *labels: Tensor) -> Tensor:
        score = torch.from_numpy(np.floor(x.numpy().reshape(len(x), -1).sum(1)))
        return score + sum(10.0 * (1 - y % 2) for y in labels)


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return 0.1 * x + (self.shift + labels)[..., None, None, None]


def test_a_look_ahead_takes_images_labels_and_rewards_without_a_gradient():
    schedule = from_levels(np.array([9.0, 4.0]), np.array([0.5, 0.9]), final_std=0.01)
    policy = DenoisingPolicy(Conditional(), schedule, shape=(1, 3, 3), num_classes=4)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(600, 1, 3, 3, generator=generator)
    labels = torch.arange(600) % 4
    with torch.no_grad():
        latents = torch.stack([start, *policy.denoise(start, generator, labels)])
    drawn = drawn_by(policy, latents, torch.zeros(2, 600), labels)
    networks = Networks(policy, Digital(), NoValue(), pretrained=policy)
    scores = networks.critic(drawn.final, labels)
    values = baseline_values("look_ahead", drawn, scores, networks)
    left = (scores - values).var(dim=1) / scores.var()
    assert left[1] < left[0] < 0.5
    assert left[1] < 0.02
    asked = Term(TermConfig(use="own:digital", look_ahead=True), networks.critic, False)
    networks = Networks(policy, Critic(), NoValue(), policy, Objective([asked]))
    assert torch.equal(baseline_values("look_ahead", drawn, scores, networks), values)
