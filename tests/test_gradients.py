"""The policy gradient is the gradient it should be: three independent computations of it."""

import numpy as np
import pytest
import torch
from chains import (
    NUM_BATCHES,
    Bump,
    NoValue,
    Parabola,
    estimates,
    flat_grad,
    largest_z,
    quantile,
    sft_pg,
    two_step_policy,
)
from torch import Tensor, nn

from sft_rl.algorithms import Networks
from sft_rl.diffusion.schedule import StepSchedule
from sft_rl.policy import DenoisingPolicy
from sft_rl.types import Trajectories


@pytest.mark.parametrize(("dim", "squash"), [(1, False), (1, True), (2, True)])
def test_policy_gradient_and_pathwise_gradient_agree(dim: int, squash: bool):
    """The paper's theorem, for one fixed critic."""
    pathwise, (by_policy,) = estimates(two_step_policy(dim, squash=squash), Bump(), [NoValue()])
    allowed = quantile(pathwise.shape[1])
    assert largest_z(by_policy - pathwise) < allowed
    assert largest_z(by_policy) > 5 * allowed, "too little data to tell the gradient from zero"


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
