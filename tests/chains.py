"""Chains of two steps whose gradients are known, and estimates of them.

Gradients are estimated on many batches. Two estimates of the same gradient are compared by the
z-score of the mean of their paired difference; with p parameters and confidence 1 - ALPHA the
largest |z| must stay below the normal quantile at 1 - ALPHA / (2 p) (Bonferroni).
"""

from dataclasses import replace

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor, nn

from sft_rl.algorithms import Algorithm, Networks
from sft_rl.config import Config
from sft_rl.critics import Critic
from sft_rl.diffusion.schedule import StepSchedule
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
