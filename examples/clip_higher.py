"""A GRPO variant: the ratio may rise further than it may fall (clip-higher of DAPO, 2025).

What was unlikely and turned out well is held back less. Groups, window and minibatches are GRPO's.
Run it from the repository's root:

    sft-rl train swiss_roll algorithm=examples.clip_higher:ClipHigher rollout.group_size=4 \
        rollout.branch_step=cycle rollout.shards_per_batch=4
"""

import torch
from pydantic import Field

from sft_rl.algorithms import Networks
from sft_rl.algorithms.grpo import GRPO, Branches
from sft_rl.config import GRPOConfig
from sft_rl.types import Loss


class ClipHigher(GRPO):
    """GRPO with bounds 1 - clip_range and 1 + clip_high."""

    class Options(GRPOConfig):
        """GRPO's settings and one more."""

        clip_high: float = Field(0.28, gt=0.0)
        """Bound of the ratio's deviation above 1."""
        num_minibatches: int = Field(2, ge=1)
        """Policy steps in a pass; with one alone no ratio leaves 1."""

    options: Options

    def loss(self, batch: Branches, networks: Networks) -> Loss:
        """Return the surrogate, averaged over the minibatch."""
        steps, options = batch.transitions, self.options
        log_prob = networks.policy.log_prob(
            steps.latents, steps.actions, steps.step_index, steps.labels
        )
        ratio = (log_prob - steps.old_log_probs).exp()
        clipped = ratio.clamp(1.0 - options.clip_range, 1.0 + options.clip_high)
        surrogate = torch.min(ratio * steps.advantages, clipped * steps.advantages)
        metrics = {"ratio": ratio.detach(), "clip_fraction": (ratio != clipped).float().mean()}
        return Loss(-surrogate.mean(), metrics)
