r"""What is subtracted from the score of a chain: V(s_k), a look ahead, or the scores of others.

The look ahead, which nobody trains:

.. math::
    b(s_k) = m + \beta_k \left(f(\hat{x}(s_k)) - m_k\right)

where x_hat(s_k) is the final sample that the policy itself expected at s_k when it drew the action;
m, m_k and beta_k are a regression of the scores on f(x_hat(s_k)) over the batch, step by step. Any
function of the state leaves the policy gradient's expectation as it is, and so does a regression
that leaves out the trajectory whose baseline it gives. f are the objective's live terms: a reward
that scores each sample once is not asked ahead, and without live terms the mean of the other
trajectories is left.

Of a group, the mean score of its *other* members is a baseline from the step at which they part:
given the state there, they are independent. Before it they share their actions, so there it is the
mean of the other groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sft_rl.algorithms.base import Networks
from sft_rl.policy import chunk_of
from sft_rl.types import Trajectories, for_all, given


@torch.no_grad()
def baseline_values(
    name: str, trajectories: Trajectories, scores: Tensor, networks: Networks
) -> Tensor:
    """b(s_k) at every state of some trajectories, shape (T, B).

    Args:
        name: ``look_ahead``, ``group``, ``value`` or ``none``, which is 0.
        trajectories: T steps of B trajectories.
        scores: Final scores f, shape (B,).
        networks: Policy, objective and V.
    """
    if name == "look_ahead":
        return leave_one_out(_expected_scores(trajectories, networks), scores)
    latents = trajectories.latents[:-1]
    steps = torch.arange(trajectories.num_steps, device=latents.device)[:, None]
    if name == "group":
        inside, outside = means_of_others(scores, trajectories.group_size)
        assert trajectories.branch_step is not None, "no groups were drawn"
        parted = steps >= trajectories.branch_step
        return torch.where(parted, inside, outside)
    if name == "value":
        values = networks.value(latents, steps, *given(trajectories.labels))
        return values.squeeze(-1)  # type: ignore[no-any-return]
    return scores.new_zeros(latents.shape[:2])


def leave_one_out(features: Tensor, scores: Tensor) -> Tensor:
    """Regress scores (B,) on one feature, step by step; predict each from all *others*.

    By the hat matrix: without row i the residual is e_i / (1 - h_i), with the leverage
    ``h_i = 1/B + (c_i - m)^2 / sum_j (c_j - m)^2``. A feature that does not vary leaves the mean of
    the others. A row that alone fixes the slope (h_i = 1) has nothing to be predicted from, nor has
    a batch of one: 0.

    Args:
        features: c, shape (T, B).
        scores: Shape (B,).

    Returns:
        Shape (T, B).
    """
    c = features - features.mean(dim=1, keepdim=True)
    f = scores - scores.mean()
    square = c.square()
    total = square.sum(dim=1, keepdim=True)
    varies = total > 0
    slope = torch.where(varies, (c * f).sum(dim=1, keepdim=True) / total, 0.0)
    leverage = 1.0 / len(scores) + torch.where(varies, square / total, 0.0)
    left = 1.0 - leverage
    residual = (f - slope * c) / left
    return torch.where(left > 1e-6, scores - residual, 0.0)


def means_of_others(scores: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Mean score of the others in each one's group, and of all other groups; shapes (B,).

    Args:
        scores: Shape (B,), the members of a group in a row.
        group_size: K, above 1.
    """
    groups = scores.reshape(-1, group_size)
    sums = groups.sum(dim=1, keepdim=True)
    inside = (sums - groups) / (group_size - 1)
    num_outside = len(scores) - group_size
    outside = (sums.sum() - sums) / max(num_outside, 1)  # a single group has none: 0
    return inside.reshape(-1), outside.expand_as(groups).reshape(-1)


def _expected_scores(trajectories: Trajectories, networks: Networks) -> Tensor:
    """f(x_hat(s_k)) at every state, shape (T, B); whoever drew the trajectories kept x_hat."""
    expected, labels = trajectories.expected, trajectories.labels
    assert expected is not None, "a look ahead needs what the policy expected"
    lead = expected.shape[:2]
    if not networks.objective.live:
        return expected.new_zeros(lead)
    flat = expected.flatten(0, 1)
    rows = [for_all(y, lead).flatten(0, 1) for y in given(labels)]
    size = chunk_of(networks.policy.shape)
    parts = [
        networks.score(*(values[start : start + size] for values in (flat, *rows)))
        for start in range(0, len(flat), size)
    ]
    return torch.cat(parts).reshape(lead)
