r"""Group-relative policy optimisation over denoising chains (Shao et al., 2024), by branches.

.. math::
    A_i = \frac{f_i - \mathrm{mean}_{j \in \text{group}} f_j}{\mathrm{std}}, \qquad
    L = -\mathbb{E}\bigl[\min(r_k A,\; \mathrm{clip}(r_k, 1 - \epsilon, 1 + \epsilon) A)\bigr]
        + \beta\, \mathrm{KL}(\pi \,\|\, \pi_\text{pretrained})

The K trajectories of a group share their way up to ``rollout.branch_step`` and part there, so what
differs in their scores is owed to what came after: no value network, and no look ahead. The steps
before the branch, which all of a group share, learn nothing from it; ``window`` is how many steps
from the branch on learn (Flow-GRPO-Fast trains one or two; TempFlow-GRPO the branch alone).

In place of the clip, a trust region without a ratio's dependence on dimension (Flow-DPPO): with the
closed-form KL of the new step's Gaussian to the old one's, divided by the number of dimensions,

.. math::
    D_k = \mathrm{KL}(\pi(\cdot \mid s_k) \,\|\, \pi_\text{old}(\cdot \mid s_k)) / d

a term is dropped where D_k is beyond the bound and the update would still move away: A > 0 and
r_k > 1, or A < 0 and r_k < 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sft_rl.algorithms.advantages import within_groups
from sft_rl.algorithms.base import Algorithm, Networks, minibatches
from sft_rl.config import GRPOConfig
from sft_rl.diffusion.reverse import gaussian_kl
from sft_rl.types import Loss, Trajectories, Transitions


@dataclass(frozen=True)
class Branches:
    """Transitions of groups that have parted, and the policy that drew them.

    Attributes:
        transitions: N of them.
        old_mean: Mean of the old policy's next latent, shape (N, *shape).
        old_std: Its standard deviation, expanded as in ``gaussian_kl``, shape (N, 1, ...).
    """

    transitions: Transitions
    old_mean: Tensor
    old_std: Tensor

    def __len__(self) -> int:
        return len(self.transitions)

    def __getitem__(self, rows: Tensor | slice) -> Branches:
        """Take some of them."""
        return Branches(self.transitions[rows], self.old_mean[rows], self.old_std[rows])


class GRPO(Algorithm):
    """GRPO by branches; see :class:`sft_rl.config.GRPOConfig` for its options."""

    Options = GRPOConfig
    weighs_by_ratio = True
    options: GRPOConfig
    baseline = "group"
    splits_batches = True

    def density_steps(self, num_steps: int, branch_step: int | Literal["cycle"]) -> range:
        """The window's; wherever groups part, one after the other, all."""
        if branch_step == "cycle":
            return range(num_steps)
        return range(branch_step, num_steps)[: self.options.window]

    def exploration(self, num_steps: int) -> tuple[int, float] | None:
        """The window's, if it has an eta of its own."""
        options = self.options
        if options.window_eta is None:
            return None
        return options.window or num_steps, options.window_eta

    def num_rows(self, num_trajectories: int, num_steps: int) -> int:
        """Rows are the transitions of the window."""
        return num_trajectories * min(self.options.window or num_steps, num_steps)

    def kept_calls(self, num_steps: int) -> tuple[int, int]:
        """One call of a minibatch."""
        training = self.training
        rows = self.num_rows(training.batch_size * training.n_critic, num_steps)
        rows //= min(self.options.num_minibatches, rows)
        return 1, min(rows, training.micro_batch_size or rows)

    @torch.no_grad()
    def prepare(self, trajectories: Trajectories, networks: Networks) -> Branches:
        """Score the final samples, compare them within their groups, keep the window's steps."""
        policy, options, branch = networks.policy, self.options, trajectories.branch_step
        assert branch is not None, "no groups were drawn"
        scores = networks.scores(trajectories)
        advantages = within_groups(scores, trajectories.group_size, scale=options.scale)
        steps = torch.arange(trajectories.num_steps, device=branch.device)[:, None]
        lead = (len(steps), len(scores))
        grid = Transitions(
            latents=trajectories.latents[:-1],
            actions=trajectories.latents[1:],
            step_index=trajectories.step_index,
            old_log_probs=trajectories.log_probs,
            advantages=advantages.expand(lead),
            labels=trajectories.labels,
        )
        learns = (steps >= branch) & (steps < branch + (options.window or len(steps)))
        kept = grid.flatten()[learns.flatten().nonzero()[:, 0]]
        old_mean = policy.mean(kept.latents, kept.step_index, kept.labels)
        return Branches(kept, old_mean, policy.step_std(kept.step_index))

    def batches(self, prepared: Branches, generator: torch.Generator) -> Iterator[Branches]:
        """Yield the minibatches of every epoch, shuffled anew for each."""
        options = self.options
        for rows in minibatches(
            len(prepared), options.num_minibatches, options.num_epochs, generator
        ):
            yield prepared[rows]

    def loss(self, batch: Branches, networks: Networks) -> Loss:
        """Return the surrogate plus the KL penalty, averaged over the minibatch."""
        policy, options, steps = networks.policy, self.options, batch.transitions
        mean = policy.mean(steps.latents, steps.step_index, steps.labels)
        log_prob = policy.log_prob_from_mean(steps.actions, mean, steps.step_index)
        ratio = (log_prob - steps.old_log_probs).exp()
        surrogate = ratio * steps.advantages
        if options.trust_region is None:
            clipped = ratio.clamp(1.0 - options.clip_range, 1.0 + options.clip_range)
            surrogate = torch.min(surrogate, clipped * steps.advantages)
            metrics = {"clip_fraction": (ratio != clipped).float().mean()}
        else:
            kl = gaussian_kl(
                mean.detach(),
                policy.step_std(steps.step_index).detach(),
                batch.old_mean,
                batch.old_std,
                event_ndim=policy.event_ndim,
            )
            far = kl / mean[0].numel() > options.trust_region
            dropped = far & ((ratio - 1.0) * steps.advantages > 0)
            surrogate = torch.where(dropped, 0.0, surrogate)
            metrics = {"dropped_fraction": dropped.float().mean()}
        value = -surrogate.mean()
        if options.kl_weight > 0:
            drift = policy.kl(networks.pretrained, steps.latents, steps.step_index, steps.labels)
            value = value + options.kl_weight * drift.mean()
        return Loss(value, {"ratio": ratio.detach(), **metrics})
