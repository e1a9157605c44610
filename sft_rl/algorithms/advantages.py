"""Advantages of denoising steps: the only reward is the score of the final sample."""

import torch
from torch import Tensor

from sft_rl.algorithms.base import Networks
from sft_rl.algorithms.baselines import baseline_values
from sft_rl.config import PolicyGradientConfig
from sft_rl.types import Trajectories, Transitions


def generalised_advantages(scores: Tensor, values: Tensor, *, gae_lambda: float) -> Tensor:
    """Generalised advantage estimation over the chain (Schulman et al., 2016), no discount.

    With lambda = 1 it is ``scores - values``, the paper's advantage.

    Args:
        scores: Final scores f(latents[T]), shape (B,).
        values: V(s_k), shape (T, B).
        gae_lambda: Weight of longer returns, 0..1.

    Returns:
        Advantages, shape (T, B).
    """
    deltas = torch.cat([values[1:], scores[None]]) - values
    advantages = deltas.clone()
    for k in reversed(range(len(values) - 1)):
        advantages[k] += gae_lambda * advantages[k + 1]
    return advantages


def normalised(advantages: Tensor, how: str) -> Tensor:
    """Bring advantages (T, B) to unit spread.

    ``batch``: divide by the standard deviation over the grid; ``step``: shift and scale every
    step to mean 0 and standard deviation 1 over the batch; ``none``: leave them.
    """
    if how == "batch":
        return advantages / (advantages.std() + 1e-8)
    if how == "step":
        centred = advantages - advantages.mean(dim=1, keepdim=True)
        return centred / (centred.std(dim=1, keepdim=True) + 1e-8)
    return advantages


def within_groups(scores: Tensor, group_size: int, *, scale: str) -> Tensor:
    """Advantages of scores (B,) over the mean of their groups, K in a row; shape (B,).

    Args:
        scores: Shape (B,).
        group_size: K.
        scale: Divide by the standard deviation in each ``group``, over the ``batch``, or ``none``.
    """
    groups = scores.reshape(-1, group_size)
    centred = groups - groups.mean(dim=1, keepdim=True)
    if scale == "group":
        centred = centred / (groups.std(dim=1, keepdim=True) + 1e-8)
    elif scale == "batch":
        centred = centred / (centred.std() + 1e-8)
    return centred.reshape(-1)


@torch.no_grad()
def score_transitions(
    trajectories: Trajectories,
    networks: Networks,
    options: PolicyGradientConfig,
    *,
    normalise: str,
) -> Transitions:
    """Turn trajectories into the (T, B) grid of transitions with detached advantages.

    Scores come from the *current* critic and the other terms of the objective, the baseline from
    the current networks.
    """
    latents = trajectories.latents[:-1]
    scores = networks.scores(trajectories)
    values = baseline_values(options.baseline, trajectories, scores, networks)
    advantages = generalised_advantages(scores, values, gae_lambda=options.gae_lambda)
    return Transitions(
        latents=latents,
        actions=trajectories.latents[1:],
        step_index=trajectories.step_index,
        old_log_probs=trajectories.log_probs,
        advantages=normalised(advantages, normalise),
        labels=trajectories.labels,
    )
