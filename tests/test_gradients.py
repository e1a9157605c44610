"""The policy gradient is the gradient it should be: three independent computations of it.

Gradients are estimated on many batches. Two estimates of the same gradient are compared by the
z-score of the mean of their paired difference; with p parameters and confidence 1 - ALPHA the
largest |z| must stay below the normal quantile at 1 - ALPHA / (2 p) (Bonferroni).
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from sft_rl.algorithms import Algorithm, Networks
from sft_rl.algorithms.baselines import baseline_values, leave_one_out, means_of_others
from sft_rl.config import Config
from sft_rl.critics import Critic
from sft_rl.diffusion.schedule import StepSchedule, from_levels
from sft_rl.policy import DenoisingPolicy
from sft_rl.runs.parts import algorithm_of
from sft_rl.types import Trajectories

ALPHA = 1e-3
NUM_BATCHES, BATCH_SIZE = 300, 500


class Affine(nn.Module):
    """eps = W x + c t + b, and its tanh if asked for."""

    def __init__(self, dim: int, *, squash: bool) -> None:
        super().__init__()
        start = torch.linspace(-0.5, 0.7, dim * dim + 2 * dim)
        weight, slope, bias = start.split([dim * dim, dim, dim])
        self.weight = nn.Parameter(weight.reshape(dim, dim).clone())
        self.slope = nn.Parameter(slope.clone())
        self.bias = nn.Parameter(bias.clone())
        self.squash = squash

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        eps = x @ self.weight.T + self.slope * t[..., None] + self.bias
        return eps.tanh() if self.squash else eps


class Bump(Critic):
    """f(x) = exp(-|x - 1|^2 / 2), smooth and fixed."""

    def forward(self, x: Tensor) -> Tensor:
        return (-0.5 * (x - 1.0).square().sum(-1)).exp()


class Parabola(Critic):
    """f(x) = |x|^2."""

    def forward(self, x: Tensor) -> Tensor:
        return x.square().sum(-1)


class NoValue(nn.Module):
    def forward(self, latents: Tensor, step_index: Tensor) -> Tensor:
        return torch.zeros_like(latents[..., :1])


def two_step_policy(dim: int, *, squash: bool) -> DenoisingPolicy:
    schedule = StepSchedule(
        timesteps=np.array([1.0, 0.0]),
        coef_x=np.array([0.9, 0.8]),
        coef_output=np.array([-0.6, 0.5]),
        std=np.array([0.7, 0.4]),
        alpha_bar=np.array([0.5, 0.8]),
    )
    policy = DenoisingPolicy(Affine(dim, squash=squash), schedule, shape=(dim,), learn_std=True)
    return policy.double()


def flat_grad(value: Tensor, policy: DenoisingPolicy) -> np.ndarray:
    grads = torch.autograd.grad(value, list(policy.parameters()))
    return torch.cat([grad.flatten() for grad in grads]).numpy()


def sft_pg(baseline: str) -> Algorithm:
    options = {"baseline": baseline, "normalise_advantages": "none"}
    return algorithm_of(Config.model_validate({"sft_pg": options}))


def estimates(
    policy: DenoisingPolicy,
    critic: Critic,
    values: list[nn.Module | str],
    *,
    batch_size: int = BATCH_SIZE,
    group_size: int = 1,
    branch: int = 0,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Estimate grad E[f] on the same chains: pathwise, and as a policy gradient per baseline.

    Args:
        policy: The chain.
        critic: f.
        values: Baselines: a network, or the name of one that needs none.
        batch_size: Chains of a batch.
        group_size: Chains in a row that start alike.
        branch: Step at which they part.

    Returns:
        The pathwise gradients, shape (NUM_BATCHES, p), and as much for each of `values`.
    """
    generator = torch.Generator().manual_seed(1)
    pathwise, by_policy = [], [[] for _ in values]
    for _ in range(NUM_BATCHES):
        shape = (policy.num_steps + 1, batch_size, *policy.shape)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        shared = noise[: branch + 1, ::group_size]
        noise[: branch + 1] = shared.repeat_interleave(group_size, dim=1)
        path = [noise[0]]
        for k, z in enumerate(noise[1:]):
            path.append(
                policy.mean(path[-1], torch.tensor(k)) + policy.step_std(torch.tensor(k)) * z
            )
        pathwise.append(flat_grad(critic(path[-1]).mean(), policy))
        latents = torch.stack(path).detach()
        steps = torch.arange(policy.num_steps)[:, None]
        log_probs = policy.log_prob(latents[:-1], latents[1:], steps).detach()
        trajectories = replace(
            drawn_by(policy, latents, log_probs),
            group_size=group_size,
            branch_step=torch.full((batch_size,), branch),
        )
        for value, found in zip(values, by_policy, strict=True):
            named = isinstance(value, str)
            algorithm = sft_pg(value if named else "value")
            networks = Networks(policy, critic, NoValue() if named else value, pretrained=policy)
            (batch,) = algorithm.batches(algorithm.prepare(trajectories, networks), generator)
            # The loss is a mean over steps, too, and falls where E[f] rises.
            loss = algorithm.loss(batch, networks).value * -policy.num_steps
            found.append(flat_grad(loss, policy))
    return np.array(pathwise), [np.array(found) for found in by_policy]


@torch.no_grad()
def drawn_by(
    policy: DenoisingPolicy, latents: Tensor, log_probs: Tensor, *labels: Tensor
) -> Trajectories:
    """Trajectories with what the policy expected at each state."""
    steps = torch.arange(policy.num_steps)[:, None]
    lead = latents[:-1].shape[:2]
    eps = policy.network(latents[:-1], policy.timesteps[steps], *(y.expand(lead) for y in labels))
    expected = policy.expected_from_output(latents[:-1], eps, steps)
    rewards = torch.zeros(0, latents.shape[1])
    return Trajectories(latents, log_probs, rewards, 0, *labels, expected=expected)


def largest_z(differences: np.ndarray) -> float:
    error = differences.std(axis=0, ddof=1) / np.sqrt(len(differences))
    return float(np.abs(differences.mean(axis=0) / error).max())


def quantile(num_parameters: int) -> float:
    return float(norm.ppf(1.0 - ALPHA / (2.0 * num_parameters)))


@pytest.mark.parametrize(("dim", "squash"), [(1, False), (1, True), (2, True)])
def test_policy_gradient_and_pathwise_gradient_agree(dim: int, squash: bool):
    """The paper's theorem, for one fixed critic."""
    pathwise, (by_policy,) = estimates(two_step_policy(dim, squash=squash), Bump(), [NoValue()])
    allowed = quantile(pathwise.shape[1])
    assert largest_z(by_policy - pathwise) < allowed
    assert largest_z(by_policy) > 5 * allowed, "too little data to tell the gradient from zero"


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


def expected_bump(policy: DenoisingPolicy) -> float:
    """E[f(x_T)] in closed form: an affine 1-D chain ends in N(m, v)."""
    network, std = policy.network, policy.std
    m, v = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for k in range(policy.num_steps):
        slope = policy.coef_x[k] + policy.coef_output[k] * network.weight[0, 0]
        shift = network.slope[0] * policy.timesteps[k] + network.bias[0]
        m = slope * m + policy.coef_output[k] * shift
        v = slope**2 * v + std[k] ** 2
    return float((1.0 + v) ** -0.5 * (-0.5 * (m - 1.0) ** 2 / (1.0 + v)).exp())


@torch.no_grad()
def finite_differences(policy: DenoisingPolicy, *, step: float = 1e-5) -> np.ndarray:
    slopes = []
    for parameter in policy.parameters():
        for entry in parameter.view(-1):
            entry += step
            above = expected_bump(policy)
            entry -= 2 * step
            below = expected_bump(policy)
            entry += step
            slopes.append((above - below) / (2 * step))
    return np.array(slopes)


def test_policy_gradient_agrees_with_finite_differences_of_the_expected_score():
    policy = two_step_policy(1, squash=False)
    _, (by_policy,) = estimates(policy, Bump(), [NoValue()])
    truth = finite_differences(policy)
    assert np.abs(truth).min() > 0.01
    assert largest_z(by_policy - truth) < quantile(len(truth))


class Constant(nn.Module):
    """eps = theta: each step moves its latent by theta."""

    def __init__(self, theta: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.theta.expand_as(x)


def shifting_policy(theta: float) -> DenoisingPolicy:
    """Two steps x_{k+1} ~ N(x_k + theta, 1): under f(x) = x^2 is E[f] = 3 + (2 theta)^2."""
    times, ones = np.array([1.0, 0.0]), np.ones(2)
    schedule = StepSchedule(
        timesteps=times, coef_x=ones, coef_output=ones, std=ones, alpha_bar=ones
    )
    return DenoisingPolicy(Constant(theta), schedule, shape=(1,), learn_std=False).double()


def test_one_ratio_per_step_is_a_first_order_surrogate():
    """Chains drawn at theta = 0.4 and a gradient taken at 0.5.

    The exact gradient of 3 + (theta_0 + theta_1)^2 is 8 theta = 4.00. With one ratio per step the
    other step stays at the old value: 4 (theta + old) = 3.60. The chain's ratio gives 4.00.
    """
    old, theta, num = 0.4, 0.5, 10_000
    policy = shifting_policy(theta)
    algorithm = sft_pg("none")
    drawing, generator = shifting_policy(old), torch.Generator().manual_seed(0)
    steps = torch.arange(2)[:, None]
    per_step, per_chain = [], []
    for _ in range(NUM_BATCHES):
        start = torch.randn(num, 1, generator=generator, dtype=torch.float64)
        latents = torch.stack([start, *drawing.denoise(start, generator)]).detach()
        old_log_probs = drawing.log_prob(latents[:-1], latents[1:], steps).detach()
        trajectories = Trajectories(latents, old_log_probs, torch.zeros(0, num), 0)
        networks = Networks(policy, Parabola(), NoValue(), pretrained=policy)
        (batch,) = algorithm.batches(algorithm.prepare(trajectories, networks), generator)
        loss = algorithm.loss(batch, networks).value * -policy.num_steps
        per_step.append(flat_grad(loss, policy))
        log_probs = policy.log_prob(latents[:-1], latents[1:], steps)
        chain_ratio = (log_probs - old_log_probs).sum(0).exp()
        per_chain.append(flat_grad((chain_ratio * Parabola()(latents[-1])).mean(), policy))
    exact, surrogate = np.array([8 * theta]), np.array([4 * (theta + old)])
    assert largest_z(np.array(per_step) - surrogate) < quantile(1)
    assert largest_z(np.array(per_chain) - exact) < quantile(1)
    assert largest_z(np.array(per_step) - exact) > 10 * quantile(1)
