r"""Policy gradient on the stochastic steps, back-propagation through the last ones.

The last step adds almost no noise: its log-prob is a needle, and the score-function gradient there
is nearly all variance. But the critic is differentiable, so the last K steps can be
back-propagated, as DRaFT does for rewards (Clark et al., 2024):

.. math::
    \nabla \Phi = -\mathbb{E}\Bigl[\sum_{k < T-K} A_k \nabla \log \pi(a_k \mid s_k)
        + \nabla_\theta f\bigl(x_T(\theta, x_{T-K}, z)\bigr)\Bigr]

Both terms are parts of one gradient, so advantages are not normalised here. Rewards without a
gradient go through the first term alone: nothing tells the last K steps of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sft_rl.algorithms.advantages import score_transitions
from sft_rl.algorithms.base import Algorithm, Networks
from sft_rl.algorithms.pathwise import Chain, walk
from sft_rl.config import HybridConfig, TrainingConfig
from sft_rl.types import Loss, Trajectories, Transitions, given


@dataclass(frozen=True)
class HybridBatch:
    """The stochastic steps of some trajectories and the chains of their last steps.

    Attributes:
        transitions: The first T - K steps as a grid (T-K, B).
        chain: Where the last K steps start, and their noise.
    """

    transitions: Transitions
    chain: Chain

    def __len__(self) -> int:
        return len(self.chain)

    def __getitem__(self, trajectories: slice) -> HybridBatch:
        """Take some of the trajectories."""
        return HybridBatch(self.transitions.part(trajectories), self.chain[trajectories])


class Hybrid(Algorithm):
    """Score-function gradient first, pathwise gradient last."""

    Options = HybridConfig
    options: HybridConfig
    splits_batches = True

    def __init__(self, options: HybridConfig, training: TrainingConfig) -> None:
        super().__init__(options, training)
        self.baseline = options.baseline

    def num_density_steps(self, num_steps: int) -> int:
        """The last K steps need no density."""
        return max(num_steps - self.options.num_last_steps, 0)

    def kept_calls(self, num_steps: int) -> tuple[int, int]:
        """All steps of the trajectories of a policy step."""
        calls, trajectories = super().kept_calls(num_steps)
        return calls, trajectories * num_steps

    def prepare(self, trajectories: Trajectories, networks: Networks) -> Transitions:
        """Score the final samples; subtract the baseline."""
        return score_transitions(trajectories, networks, self.options, normalise="none")

    def batches(self, prepared: Transitions, generator: torch.Generator) -> Iterator[HybridBatch]:
        """Yield disjoint trajectories for each of the `n_generator` policy steps."""
        num_updates = self.training.n_generator
        first = self.num_density_steps(len(prepared.latents))
        size = prepared.latents.shape[1] // num_updates
        for i in range(num_updates):
            part = slice(i * size, (i + 1) * size)
            starts = prepared.latents[first, part]
            shape = (len(prepared.latents) - first, *starts.shape)
            noise = torch.randn(shape, generator=generator, device=starts.device)
            transitions = prepared.part(part, num_steps=first)
            yield HybridBatch(transitions, Chain(starts, noise, transitions.labels))

    def loss(self, batch: HybridBatch, networks: Networks) -> Loss:
        """Return both terms, summed over steps and averaged over trajectories."""
        steps = batch.transitions
        final = walk(networks.policy, batch.chain)
        value = -networks.score(final, *given(steps.labels)).mean()
        if not len(steps.latents):
            return Loss(value, {})
        log_prob = networks.policy.log_prob(
            steps.latents, steps.actions, steps.step_index, steps.labels
        )
        ratio = (log_prob - steps.old_log_probs).exp()
        value = value - (ratio * steps.advantages).sum(dim=0).mean()
        return Loss(value, {"ratio": ratio.detach()})
