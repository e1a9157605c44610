"""An algorithm of one's own: policy gradient with the batch's mean score as baseline.

No value network is trained. Run it from the repository's root:

    sft-rl train swiss_roll algorithm=examples.batch_baseline:BatchBaseline
"""

from collections.abc import Iterator

import torch

from sft_rl.algorithms import Algorithm, Networks
from sft_rl.algorithms.advantages import score_transitions
from sft_rl.config import PolicyGradientConfig
from sft_rl.types import Loss, Trajectories, Transitions


class BatchBaseline(Algorithm):
    """-E[ratio * (f(x_T) - mean f) / std f], one step on all transitions of an iteration."""

    def prepare(self, trajectories: Trajectories, networks: Networks) -> Transitions:
        """Score the final samples; at every step, subtract their mean and divide by their std."""
        return score_transitions(
            trajectories,
            networks,
            PolicyGradientConfig(baseline="none"),
            normalise="step",
        )

    def batches(self, prepared: Transitions, generator: torch.Generator) -> Iterator[Transitions]:
        """Yield everything at once."""
        yield prepared

    def loss(self, batch: Transitions, networks: Networks) -> Loss:
        """Return the policy gradient's surrogate; its ratio is 1 here, and is checked to be."""
        log_prob = networks.policy.log_prob(batch.latents, batch.actions, batch.step_index)
        ratio = (log_prob - batch.old_log_probs).exp()
        return Loss(-(ratio * batch.advantages).mean(), {"ratio": ratio.detach()})
