"""Is training right and healthy: numbers to watch, and an alarm before a run is lost."""

from __future__ import annotations

import math
from typing import NoReturn

import torch
from torch import Tensor

from sft_rl.algorithms import Networks
from sft_rl.errors import UserError
from sft_rl.types import Metrics, Trajectories, given

NUM_WATCHED = 256
SPREAD_RANGE = (0.05, 20.0)
PATIENCE = 20
MAX_RATIO_DEVIATION = 0.05


class TrainingAlarm(UserError):
    """Training has gone wrong; the last checkpoint is kept."""


class Alarm:
    """Stops a run whose samples collapse or whose numbers leave the finite range.

    While it waits for odd samples to recover nothing should be saved, so that the last checkpoint
    is one from before.
    """

    def __init__(self) -> None:
        self._num_odd = 0

    @property
    def is_quiet(self) -> bool:
        """Whether the newest iteration's numbers were all in range."""
        return self._num_odd == 0

    def check(self, row: Metrics) -> None:
        """Look at one iteration's numbers.

        Raises:
            TrainingAlarm: Saying what happened and what to try.
        """
        for name, value in row.items():
            if not math.isfinite(value):
                self.ring(f"{name} is {value} in iteration {row['iteration']:.0f}")
        low, high = SPREAD_RANGE
        odd = not low <= row["sample_spread"] <= high
        self._num_odd = self._num_odd + 1 if odd else 0
        if self._num_odd >= PATIENCE:
            self.ring(
                f"the samples' spread is {row['sample_spread']:.3g} (data: 1) since "
                f"{PATIENCE} iterations"
            )

    def ring(self, what: str) -> NoReturn:
        """Stop the run.

        Raises:
            TrainingAlarm: Always.
        """
        raise TrainingAlarm(
            f"training stopped: {what}; checkpoints from before are kept; try a lower "
            "policy.learning_rate, a higher critic.penalty_weight or more training.n_critic"
        )


@torch.no_grad()
def drift(trajectories: Trajectories, networks: Networks) -> Metrics:
    """How far the policy moved: from what drew the trajectories, and from the pretrained one.

    Looks at the first 256 trajectories. Steps without noise have no density and count as 0.
    """
    policy = networks.policy
    latents, labels = trajectories.latents[:, :NUM_WATCHED], _watched_labels(trajectories)
    steps = torch.arange(trajectories.num_steps, device=latents.device)[:, None]
    log_probs = policy.log_prob(latents[:-1], latents[1:], steps, labels)
    change = (log_probs - trajectories.log_probs[:, :NUM_WATCHED]).abs().mean(dim=1)
    metrics = {f"log_prob_drift_{k}": value for k, value in enumerate(change.tolist())}
    stochastic = policy.base_std > 0
    if stochastic.any():
        some, at = latents[:-1][stochastic], steps[stochastic]
        kl = policy.kl(networks.pretrained, some, at, labels)
        metrics["kl_to_pretrained"] = kl.mean().item()
    return metrics


@torch.enable_grad()
def critic_slope(trajectories: Trajectories, networks: Networks) -> Metrics:
    """How steep the critic is where the samples are: the mean norm of its gradient.

    Whatever keeps the critic Lipschitz. Looks at the first 256 final samples; a user's function
    without a gradient has no slope.
    """
    samples = trajectories.final[:NUM_WATCHED].detach().clone().requires_grad_()
    scores = networks.critic(samples, *given(_watched_labels(trajectories)))
    if not scores.requires_grad:
        return {}
    (slope,) = torch.autograd.grad(scores.sum(), samples)
    return {"critic_slope": slope.flatten(1).norm(dim=1).mean().item()}


def _watched_labels(trajectories: Trajectories) -> Tensor | None:
    return None if trajectories.labels is None else trajectories.labels[:NUM_WATCHED]
