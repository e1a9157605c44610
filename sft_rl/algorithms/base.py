"""What an algorithm is: given trajectories and the networks, losses for the policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sft_rl.config import Section, TrainingConfig
from sft_rl.critics import Critic
from sft_rl.policy import DenoisingPolicy
from sft_rl.rewards import Objective
from sft_rl.storage.state import Stateful
from sft_rl.types import Loss, Metrics, Trajectories, given


@dataclass(frozen=True)
class Networks:
    """The networks an algorithm may look at.

    Attributes:
        policy: The policy being trained.
        critic: Scores final samples by how near the data they are.
        value: V(s_k), called as ``value(latents, step_index)``, shape (..., 1).
        pretrained: The policy as it was before fine-tuning, frozen.
        objective: What is maximised: the critic's score, unless it says otherwise.

    Of a class-conditional model all of them take the trajectories' labels as last argument, too.
    """

    policy: DenoisingPolicy
    critic: Critic
    value: nn.Module
    pretrained: DenoisingPolicy
    objective: Objective = field(default_factory=Objective)

    def score(self, x: Tensor, *labels: Tensor) -> Tensor:
        """The objective's live terms at samples (B, *shape), differentiable in x, shape (B,).

        Those are the critic, the rewards that have a gradient and, without one, those with
        ``look_ahead``; zeros if there are none.
        """
        if not self.objective.live:
            return x.new_zeros(len(x))
        return self.objective.total(self.objective.live_scores(self.critic, x, *labels), *labels)

    def scores(self, trajectories: Trajectories) -> Tensor:
        """The whole objective at the final samples, shape (B,): live terms and those paid once."""
        labels, objective = given(trajectories.labels), self.objective
        live = objective.live_scores(self.critic, trajectories.final, *labels)
        return objective.total(live | objective.of_fixed(trajectories.rewards), *labels)


class Algorithm(Stateful, ABC):
    """A policy update. It knows nothing of workers, devices or files.

    An iteration calls :meth:`prepare` once, then takes one optimiser step on :meth:`loss` for
    each batch of :meth:`batches`, until :meth:`should_stop`. Critic and value are frozen
    meanwhile.

    Args:
        options: An instance of the class's :attr:`Options`.
        training: Lengths and batch sizes of the outer loop.
    """

    Options: ClassVar[type[Section]] = Section
    """The options it takes, a section of settings of its own: ``options.NAME`` on the command line
    for a user's algorithm."""
    baseline: str = "none"
    """What it subtracts from the scores, as in :class:`~sft_rl.config.PolicyGradientConfig`: V(s_k)
    is trained for ``value`` alone, and what the baseline explains is watched."""
    splits_batches: bool = False
    """Whether a batch has a length, and slices that are batches, over whose rows the loss is a
    mean: what `training.micro_batch_size` needs."""

    weighs_by_ratio: ClassVar[bool] = False
    """Whether pi / pi_old weighs every action it learns from: what `training.max_offpolicy_steps`
    above 1 needs, where pi_old is of several versions ago."""

    needs_gradient: ClassVar[bool] = False
    """Whether it learns by the gradient of scores alone, so that every term must have one."""

    def __init__(self, options: Any, training: TrainingConfig) -> None:
        self.options = options
        self.training = training

    def begin(self, networks: Networks) -> None:
        """Build what it needs of its own, such as a Q-network and its optimiser.

        Called once, before the first iteration and before a checkpoint is loaded; torch's random
        numbers start from the run's seed here. Modules and optimisers among the attributes are
        saved with the run by themselves; whatever else is kept, ``state()`` declares.
        """

    @property
    def uses_value(self) -> bool:
        """Whether V(s_k) is to be trained."""
        return self.baseline == "value"

    @property
    def looks_ahead(self) -> bool:
        """Whether rollouts are to keep the final samples that the policy expects."""
        return self.baseline == "look_ahead"

    def num_density_steps(self, num_steps: int) -> int:
        """How many of the first steps need noise, for their log-prob: all, unless overridden."""
        return num_steps

    def density_steps(self, num_steps: int, branch_step: int | Literal["cycle"]) -> range:
        """Which steps need noise, where groups part at `branch_step`: those first ones."""
        return range(self.num_density_steps(num_steps))

    def exploration(self, num_steps: int) -> tuple[int, float] | None:
        """How many steps from the branch on trajectories take with which ``sampler.eta``.

        None, unless overridden: all steps are the sampler's own.
        """
        return None

    def num_rows(self, num_trajectories: int, num_steps: int) -> int:
        """How many rows an iteration has for its `n_generator` policy steps to share."""
        return num_trajectories

    def kept_calls(self, num_steps: int) -> tuple[int, int]:
        """How many network calls of how many latents a policy step keeps for the way back.

        What a dry run counts memory by; by default one call of the step's rows.
        """
        training = self.training
        share = self.num_rows(training.batch_size * training.n_critic, num_steps)
        rows = share // training.n_generator
        return 1, min(rows, training.micro_batch_size or rows)

    @abstractmethod
    def prepare(self, trajectories: Trajectories, networks: Networks) -> Any:
        """Compute once per iteration what all updates share, without gradients."""

    @abstractmethod
    def batches(self, prepared: Any, generator: torch.Generator) -> Iterator[Any]:
        """Cut what was prepared into the batches of the policy steps."""

    @abstractmethod
    def loss(self, batch: Any, networks: Networks) -> Loss:
        """Return the loss of one batch, averaged over it.

        A metric named ``ratio`` holds the likelihood ratios of the batch; the learner checks
        that they are 1 on the first pass.
        """

    def behaviour(self, networks: Networks) -> DenoisingPolicy:
        """The policy that draws trajectories: the newest, unless an algorithm holds it back."""
        return networks.policy

    def finish(self, networks: Networks) -> None:
        """Called after the last policy step of an iteration."""

    def should_stop(self, metrics: Metrics) -> bool:
        """Whether to drop the iteration's remaining batches, given the last one's numbers."""
        return False


def minibatches(
    num_rows: int, num_minibatches: int, num_epochs: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield the rows of each minibatch, shuffled anew for every epoch; a rest is left out.

    Args:
        num_rows: How many rows there are.
        num_minibatches: Minibatches of an epoch, at most one a row.
        num_epochs: Passes over the rows.
        generator: Source of the orders.
    """
    size = num_rows // min(num_minibatches, num_rows)
    for _ in range(num_epochs):
        order = torch.randperm(num_rows, generator=generator, device=generator.device)
        for start in range(0, num_rows - size + 1, size):
            yield order[start : start + size]
