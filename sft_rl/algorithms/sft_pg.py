r"""Shortcut fine-tuning by policy gradient, with and without baseline (Fan and Lee, 2023).

.. math::
    \nabla \Phi = -\mathbb{E}\Bigl[\sum_k \bigl(f(x_T) - V(s_k)\bigr)
        \nabla \log \pi(a_k \mid s_k)\Bigr]

Departures from the released code, each with its reason in ``docs/deviations.md``: the policy
steps of one iteration take disjoint transitions; each is weighted by the likelihood ratio
pi / pi_old of its own action. That is the first-order surrogate of TRPO and PPO (Kakade and
Langford, 2002; Schulman et al., 2015): at the first policy step the ratio is 1 and the gradient is
the paper's. At later ones it is off in the first order of the policy's change, because the ratio
corrects the choice of the action, while states, and the steps that follow, remain those of the
old policy. Only the product of all T ratios, with a variance that grows in T, would correct them.
"""

from collections.abc import Iterator

import torch

from sft_rl.algorithms.advantages import score_transitions
from sft_rl.algorithms.base import Algorithm, Networks
from sft_rl.config import SFTPGConfig, TrainingConfig
from sft_rl.types import Loss, Trajectories, Transitions


class SFTPG(Algorithm):
    """SFT-PG; with ``sft_pg.baseline=value`` it is SFT-PG (B) of the paper."""

    Options = SFTPGConfig
    weighs_by_ratio = True
    splits_batches = True

    def __init__(self, options: SFTPGConfig, training: TrainingConfig) -> None:
        super().__init__(options, training)
        self.baseline = options.baseline

    def num_rows(self, num_trajectories: int, num_steps: int) -> int:
        """Rows are transitions."""
        return num_trajectories * num_steps

    def kept_calls(self, num_steps: int) -> tuple[int, int]:
        """One call of the transitions that are drawn."""
        calls, rows = super().kept_calls(num_steps)
        return calls, min(rows, self.options.transitions_per_update or rows)

    def prepare(self, trajectories: Trajectories, networks: Networks) -> Transitions:
        """Score the final samples with the current critic; subtract the baseline."""
        return score_transitions(
            trajectories, networks, self.options, normalise=self.options.normalise_advantages
        )

    def batches(self, prepared: Transitions, generator: torch.Generator) -> Iterator[Transitions]:
        """Yield one batch of transitions for each of the `n_generator` policy steps."""
        training = self.training
        num_updates = training.n_generator
        everything = self.options.transitions_per_update is None and num_updates == 1
        if everything and training.micro_batch_size is None:
            yield prepared
            return
        flat = prepared.flatten()
        total = len(flat.advantages)
        size = min(self.options.transitions_per_update or total, total // num_updates)
        order = torch.randperm(total, generator=generator, device=generator.device)
        for i in range(num_updates):
            yield flat[order[i * size : (i + 1) * size]]

    def loss(self, batch: Transitions, networks: Networks) -> Loss:
        """Return the surrogate -E[ratio * advantage]; its gradient at ratio 1 is the paper's."""
        log_prob = networks.policy.log_prob(
            batch.latents, batch.actions, batch.step_index, batch.labels
        )
        ratio = (log_prob - batch.old_log_probs).exp()
        value = -(ratio * batch.advantages).mean()
        return Loss(value, {"ratio": ratio.detach()})
