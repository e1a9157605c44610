"""Is training right and healthy: numbers to watch, and an alarm before a run is lost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NoReturn

import torch
from torch import Tensor

from sft_rl.algorithms import Algorithm, Networks
from sft_rl.algorithms.baselines import baseline_values
from sft_rl.errors import UserError
from sft_rl.learning.optim import micro_batches
from sft_rl.learning.team import Team
from sft_rl.policy import DenoisingPolicy, chunk_of
from sft_rl.storage.dtensors import whole
from sft_rl.types import Metrics, Trajectories, Transitions, given

NUM_WATCHED = 256
SPREAD_RANGE = (0.05, 20.0)
PATIENCE = 20
MAX_RATIO_DEVIATION = 0.05


class TrainingAlarm(UserError):
    """Training has gone wrong; the last checkpoint is kept."""


def numbers(metrics: Mapping[str, Tensor | float]) -> Metrics:
    """What an algorithm or a critic watched, as plain numbers.

    Raises:
        UserError: Naming a metric that is not one number.
    """
    found: Metrics = {}
    for name, value in metrics.items():
        if isinstance(value, Tensor) and value.numel() != 1:
            raise UserError(f"metric {name!r}: one number is kept, got {tuple(value.shape)}")
        found[name] = float(value)
    return found


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
    change = (_log_probs(policy, trajectories) - trajectories.log_probs[:, :NUM_WATCHED]).abs()
    metrics = {f"log_prob_drift_{k}": v for k, v in enumerate(change.mean(dim=1).tolist())}
    steps = trajectories.step_index[:, :NUM_WATCHED]
    has_noise = (policy.step_std(steps).flatten(2).squeeze(2) > 0).expand(change.shape)
    if has_noise.any():
        first = networks.pretrained
        kl = [policy.kl(first, x[:-1], k, labels) for x, k, labels in _watched(trajectories)]
        metrics["kl_to_pretrained"] = torch.cat(kl, dim=1)[has_noise].mean().item()
    return metrics


@torch.no_grad()
def staleness(trajectories: Trajectories, networks: Networks) -> Metrics:
    r"""How far the newest policy is from that of some versions ago, which drew the trajectories.

    Of the likelihood ratios r = pi / pi_old of single actions at each step, and of whole chains,
    :math:`r = \prod_k r_k`, the share of the samples that is left in effect,

    .. math:: (\sum r)^2 \,/\, (N \sum r^2),

    and of chains ln(1 + chi^2) = ln E[r^2], nats, which grows without a bound. Steps without noise
    have no density and count as ratio 1. Looks at the first 256 trajectories.
    """
    old = trajectories.log_probs[:, :NUM_WATCHED].double()
    log_ratio = _log_probs(networks.policy, trajectories).double() - old
    chain = log_ratio.sum(dim=0)
    shares = _effective_share(log_ratio).tolist()
    return {
        **{f"effective_share_{k}": share for k, share in enumerate(shares)},
        "effective_share_chain": _effective_share(chain).item(),
        "log_chi2_chain": (chain.mul(2).logsumexp(0) - math.log(len(chain))).item(),
    }


def _effective_share(log_weights: Tensor) -> Tensor:
    """Effective share of N weighted samples, from logarithms (..., N); shape (...)."""
    one, two = (log_weights.mul(power).logsumexp(-1) for power in (1, 2))
    return (2 * one - two).exp() / log_weights.shape[-1]


@torch.enable_grad()
def critic_slope(trajectories: Trajectories, networks: Networks) -> Metrics:
    """How steep the critic is where the samples are: the mean norm of its gradient.

    Whatever keeps the critic Lipschitz. Looks at the first 256 final samples; nothing where no
    critic takes part, or one without a gradient.
    """
    if networks.objective.critic is None:
        return {}
    samples = trajectories.final[:NUM_WATCHED].detach().clone().requires_grad_()
    scores = networks.critic(samples, *given(_watched_labels(trajectories)))
    if not scores.requires_grad:
        return {}
    (slope,) = torch.autograd.grad(scores.sum(), samples)
    return {"critic_slope": slope.flatten(1).norm(dim=1).mean().item()}


def baseline_quality(
    trajectories: Trajectories, networks: Networks, algorithm: Algorithm, team: Team
) -> Metrics:
    """What the baseline explains of the scores, and how far the gradient stands out of its noise.

    The gradient is the plain one of all steps that have a density, by the policy that drew the
    trajectories; with the baseline, and for comparison without (``_raw``).
    """
    with torch.no_grad():
        scores = networks.scores(trajectories)
        values = baseline_values(algorithm.baseline, trajectories, scores, networks)
    explained = explained_variance(values, scores).tolist()
    metrics = {f"explained_variance_{k}": value for k, value in enumerate(explained)}
    num_steps = algorithm.num_density_steps(trajectories.num_steps)
    if num_steps:
        transitions = Transitions(
            latents=trajectories.latents[:-1],
            actions=trajectories.latents[1:],
            step_index=trajectories.step_index,
            old_log_probs=trajectories.log_probs,
            advantages=scores - values,
            labels=trajectories.labels,
        ).part(slice(None), num_steps=num_steps)
        raw = replace(transitions, advantages=scores.expand(transitions.lead_shape))
        _, rows = algorithm.kept_calls(trajectories.num_steps)
        for name, weighted in (("policy_grad_snr", transitions), ("policy_grad_snr_raw", raw)):
            first, second = (
                _policy_gradient(weighted.part(half), networks, team, rows=rows)
                for half in _halves(len(trajectories), trajectories.group_size)
            )
            metrics[name] = signal_to_noise(first, second)
    return metrics


def explained_variance(values: Tensor, scores: Tensor) -> Tensor:
    """1 - Var[f - V_k] / Var[f], shape (T,): 1 explains the scores, 0 is no better than a constant.

    Scores that are all the same leave nothing to explain: 0.

    Args:
        values: V(s_k), shape (T, B).
        scores: Final scores f, shape (B,).
    """
    total = scores.var()
    left = (scores - values).var(dim=1)
    return torch.where(total > 0, 1.0 - left / total, torch.zeros_like(left))


def signal_to_noise(first: Tensor, second: Tensor) -> float:
    r"""|E g|^2 / tr Var[g] of a batch's gradient, from the gradients of its two halves.

    .. math:: g_1 \cdot g_2 \,/\, (|g_1 - g_2|^2 / 4)

    Halves are independent, so numerator and denominator have no bias; below 0 the signal cannot be
    told from none. Without noise there is no ratio: 0.
    """
    noise = (first - second).square().sum() / 4
    return (first.dot(second) / noise).item() if noise > 0 else 0.0


def _halves(num: int, group_size: int) -> tuple[slice, slice]:
    """Two halves of as many rows, that share no group; an odd group is left out."""
    half = num // group_size // 2 * group_size
    return slice(half), slice(half, 2 * half)


def _policy_gradient(
    transitions: Transitions, networks: Networks, team: Team, *, rows: int
) -> Tensor:
    """Mean of advantage times the gradient of log pi over a (T, B) grid, flat.

    Args:
        transitions: The grid.
        networks: Of which the policy's gradients are overwritten.
        team: The learners that share the work.
        rows: Transitions that are back-propagated at once.
    """
    flat, policy = transitions.flatten(), networks.policy
    policy.zero_grad(set_to_none=True)
    for part, share in micro_batches(len(flat), rows):
        some = flat[part]
        log_prob = policy.log_prob(some.latents, some.actions, some.step_index, some.labels)
        ((log_prob * some.advantages).mean() * share).backward()  # type: ignore[no-untyped-call]
    team.sum_gradients(policy.parameters())
    grads = [whole(p.grad) for p in policy.parameters() if p.grad is not None]
    gradient = torch.cat([grad.flatten() for grad in grads])
    policy.zero_grad(set_to_none=True)
    return gradient


def _log_probs(policy: DenoisingPolicy, trajectories: Trajectories) -> Tensor:
    """Log-probs of the watched trajectories' actions, nats, shape (T, n)."""
    watched = _watched(trajectories)
    return torch.cat([policy.log_prob(x[:-1], x[1:], k, labels) for x, k, labels in watched], dim=1)


def _watched(trajectories: Trajectories) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yield latents (T+1, n, *shape), steps and labels of the watched trajectories, few at once.

    All T * 256 states together would take the memory of a policy step.
    """
    latents, steps, labels = trajectories.latents, trajectories.step_index, trajectories.labels
    size = max(chunk_of(latents.shape[2:]) // trajectories.num_steps, 1)
    num = min(latents.shape[1], NUM_WATCHED)
    for start in range(0, num, size):
        some = slice(start, min(start + size, num))
        own = some if steps.shape[1] > 1 else slice(None)  # one for all
        yield latents[:, some], steps[:, own], None if labels is None else labels[some]


def _watched_labels(trajectories: Trajectories) -> Tensor | None:
    return None if trajectories.labels is None else trajectories.labels[:NUM_WATCHED]
