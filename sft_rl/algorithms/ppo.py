r"""Proximal policy optimisation over denoising chains (Schulman et al., 2017).

.. math::
    L = -\mathbb{E}\bigl[\min(r_k A_k,\; \mathrm{clip}(r_k, 1 - \epsilon, 1 + \epsilon) A_k)\bigr]
        + \beta\, \mathrm{KL}(\pi \,\|\, \pi_\text{pretrained}), \qquad
    r_k = \frac{\pi(a_k \mid s_k)}{\pi_\text{old}(a_k \mid s_k)}

Several epochs of minibatches over one iteration's transitions. Advantages come from GAE over the
chain, normalised at each step, since the spread of scores shrinks from step to step. The KL is
that of Gaussians, in closed form.
"""

from collections.abc import Iterator

import torch

from sft_rl.algorithms.advantages import score_transitions
from sft_rl.algorithms.base import Algorithm, Networks, minibatches
from sft_rl.config import PPOConfig, TrainingConfig
from sft_rl.types import Loss, Metrics, Trajectories, Transitions


class PPO(Algorithm):
    """PPO with clipped ratio; see :class:`sft_rl.config.PPOConfig` for its options."""

    Options = PPOConfig
    weighs_by_ratio = True
    options: PPOConfig
    splits_batches = True

    def __init__(self, options: PPOConfig, training: TrainingConfig) -> None:
        super().__init__(options, training)
        self.baseline = options.baseline

    def kept_calls(self, num_steps: int) -> tuple[int, int]:
        """One call of a minibatch."""
        training = self.training
        transitions = training.batch_size * training.n_critic * num_steps
        rows = transitions // min(self.options.num_minibatches, transitions)
        return 1, min(rows, training.micro_batch_size or rows)

    def prepare(self, trajectories: Trajectories, networks: Networks) -> Transitions:
        """Score the final samples, estimate advantages, flatten to single transitions."""
        return score_transitions(
            trajectories, networks, self.options, normalise=self.options.normalise_advantages
        ).flatten()

    def batches(self, prepared: Transitions, generator: torch.Generator) -> Iterator[Transitions]:
        """Yield the minibatches of every epoch, shuffled anew for each."""
        options = self.options
        for rows in minibatches(
            len(prepared), options.num_minibatches, options.num_epochs, generator
        ):
            yield prepared[rows]

    def loss(self, batch: Transitions, networks: Networks) -> Loss:
        """Return the clipped surrogate plus the KL penalty, averaged over the minibatch."""
        policy, clip = networks.policy, self.options.clip_range
        log_prob = policy.log_prob(batch.latents, batch.actions, batch.step_index, batch.labels)
        log_ratio = log_prob - batch.old_log_probs
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1.0 - clip, 1.0 + clip)
        value = -torch.min(ratio * batch.advantages, clipped * batch.advantages).mean()
        metrics = {
            "ratio": ratio.detach(),
            "clip_fraction": (ratio != clipped).float().mean(),
            # Schulman's estimator of KL(old || new), never negative.
            "approx_kl": (ratio - 1.0 - log_ratio).detach().mean(),
        }
        if self.options.kl_weight > 0:
            kl = policy.kl(networks.pretrained, batch.latents, batch.step_index, batch.labels)
            value = value + self.options.kl_weight * kl.mean()
        return Loss(value, metrics)

    def should_stop(self, metrics: Metrics) -> bool:
        """Stop the epochs once the policy has moved by `target_kl`."""
        target = self.options.target_kl
        return target is not None and metrics["approx_kl"] > target
