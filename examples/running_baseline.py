"""An algorithm that remembers: REINFORCE with a running mean of the scores as baseline.

The mean is declared in `state()`, so it is in every checkpoint and a resumed run goes on with it;
the default `load_state()` puts it back. Run it from the repository's root:

    sft-rl train swiss_roll algorithm=examples.running_baseline:RunningBaseline options.decay=0.95
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from pydantic import Field

from sft_rl.algorithms import Algorithm, Networks
from sft_rl.algorithms.advantages import score_transitions
from sft_rl.config import PolicyGradientConfig, Section, TrainingConfig
from sft_rl.storage.state import State
from sft_rl.types import Loss, Trajectories, Transitions


class RunningBaseline(Algorithm):
    """-E[ratio * (f(x_T) - m)] with m a running mean over iterations."""

    weighs_by_ratio = True

    class Options(Section):
        """Its setting."""

        decay: float = Field(0.9, ge=0.0, lt=1.0)
        """Share of the old mean that stays."""

    def __init__(self, options: Options, training: TrainingConfig) -> None:
        super().__init__(options, training)
        self.mean = 0.0

    def state(self) -> State:
        """The running mean."""
        return {"mean": self.mean}

    def prepare(self, trajectories: Trajectories, networks: Networks) -> Transitions:
        """Score the final samples; subtract the mean of the iterations before."""
        plain = PolicyGradientConfig(baseline="none")
        scored = score_transitions(trajectories, networks, plain, normalise="none")
        advantages = scored.advantages - self.mean
        decay = self.options.decay
        self.mean = decay * self.mean + (1.0 - decay) * scored.advantages[0].mean().item()
        return replace(scored, advantages=advantages / (advantages.std() + 1e-8))

    def batches(self, prepared: Transitions, generator: torch.Generator) -> Iterator[Transitions]:
        """Yield everything at once."""
        yield prepared

    def loss(self, batch: Transitions, networks: Networks) -> Loss:
        """Return the policy gradient's surrogate, and the mean as a number to watch."""
        log_prob = networks.policy.log_prob(
            batch.latents, batch.actions, batch.step_index, batch.labels
        )
        ratio = (log_prob - batch.old_log_probs).exp()
        value = -(ratio * batch.advantages).mean()
        return Loss(value, {"ratio": ratio.detach(), "running_mean": self.mean})
