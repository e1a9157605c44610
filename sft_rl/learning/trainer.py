"""The loop: collect, update, evaluate, save."""

from __future__ import annotations

import time
from collections import deque
from itertools import islice

from sft_rl.config import TrainingConfig
from sft_rl.errors import NotFiniteError
from sft_rl.learning.learner import Learner
from sft_rl.learning.monitors import (
    MAX_RATIO_DEVIATION,
    Alarm,
    baseline_quality,
    critic_slope,
    drift,
    staleness,
)
from sft_rl.learning.preemption import Preempted, PreemptionNotice
from sft_rl.learning.protocols import Notice, Observer, RunStore
from sft_rl.learning.validation import Validation
from sft_rl.rollout.runner import Collector, Request, Weights
from sft_rl.seeding import num_threads
from sft_rl.types import Metrics, Trajectories


class Trainer:
    """Runs the iterations of one fine-tuning.

    Args:
        learner: Updates the networks.
        collector: Draws trajectories.
        validation: Measures the policy.
        store: Takes metrics and checkpoints.
        observer: Is told of the progress.
        training: Lengths and intervals.
        shards_per_batch: Parts in which the trajectories of a critic step are drawn.
        num_warmup_steps: Critic steps before the first policy step, on top of `n_critic`.
        threads: CPU threads to compute with.
        notice: Asked after every iteration whether to save and leave.
    """

    def __init__(
        self,
        learner: Learner,
        collector: Collector,
        *,
        validation: Validation,
        store: RunStore,
        observer: Observer,
        training: TrainingConfig,
        shards_per_batch: int,
        num_warmup_steps: int,
        threads: int,
        notice: Notice | None = None,
    ) -> None:
        self.learner = learner
        self.collector = collector
        self.validation = validation
        self.store = store
        self.observer = observer
        self.training = training
        self.shards_per_batch = shards_per_batch
        self.num_warmup_steps = num_warmup_steps
        self.threads = threads
        self.notice: Notice = notice or PreemptionNotice()
        self.alarm = Alarm()
        self.iteration = 0

    def train(self) -> None:
        """Run the iterations that are left.

        Raises:
            Preempted: After a checkpoint, if a notice arrived.
            TrainingAlarm: If training went wrong.
        """
        training = self.training
        self.notice.in_loop = True
        if self.iteration == 0:  # where the curves begin, and the best so far
            with num_threads(self.threads):
                self._evaluate()
        # What was on its way when the run was saved, or the first iterations of a new one.
        for ahead, (version, weights) in enumerate(self.learner.previous_weights()):
            self._order(self.iteration + ahead, version, weights)
        while self.iteration < training.num_iterations:
            with num_threads(self.threads):
                row = self._watched_iteration()
            self.store.log(row)
            stopping = self.notice.arrived
            if self._saves() or stopping:
                self.store.save(self.learner, iteration=self.iteration)
            self.observer.progress(self.iteration, training.num_iterations, row)
            if stopping:
                raise Preempted(
                    f"stopped after iteration {self.iteration}; a checkpoint is saved, "
                    "go on with --resume"
                )
        self.notice.in_loop = False

    def _is_due(self, every: int) -> bool:
        last = self.iteration == self.training.num_iterations
        return last or self.iteration % every == 0

    def _evaluates(self) -> bool:
        return self._is_due(self.training.eval_every)

    def _saves(self) -> bool:
        last = self.iteration == self.training.num_iterations
        return last or (self._is_due(self.training.checkpoint_every) and self.alarm.is_quiet)

    def _watched_iteration(self) -> Metrics:
        """Run an iteration, evaluate if it is time; let the alarm look at the numbers."""
        try:
            row = self._iterate()
        except NotFiniteError:  # the env refuses the policy's actions
            self.alarm.ring(f"an action is not finite in iteration {self.iteration + 1}")
        if self._evaluates():
            row |= self._evaluate()
        self.alarm.check(row)
        return row

    def _evaluate(self) -> Metrics:
        """Measure the policy, keep it if it is the best, show its samples."""
        loss, measured, picture = self.validation(self.learner.evaluated_policy)
        self.learner.consider(loss)
        if picture is not None:
            self.store.show(picture, iteration=self.iteration)
        return measured

    def _num_updates(self, iteration: int) -> int:
        """Critic steps of an iteration; the first has a warm-up."""
        return self.training.n_critic + self._num_warmup(iteration)

    def _num_warmup(self, iteration: int) -> int:
        return self.num_warmup_steps if iteration == 0 else 0

    def _num_unscored(self, iteration: int) -> int:
        """Batches of an iteration that only the critic learns from."""
        return 0 if self.learner.algorithm.uses_value else self._num_warmup(iteration)

    def _order(self, iteration: int, version: int, weights: Weights) -> None:
        """Order the trajectories of an iteration, unless it lies beyond the run's end."""
        if iteration < self.training.num_iterations:
            num_shards, num_unscored = (
                num * self.shards_per_batch
                for num in (self._num_updates(iteration), self._num_unscored(iteration))
            )
            request = Request(iteration, version, weights, num_shards, num_unscored)
            self.collector.submit(request)

    def _iterate(self) -> Metrics:
        """Draw trajectories with the current policy, step the critic and value, the policy."""
        started = time.perf_counter()
        learner, training = self.learner, self.training
        per_update, lead = self.shards_per_batch, training.max_offpolicy_steps
        learner.begin_iteration(self.iteration)
        self._order(self.iteration + lead, learner.version, learner.weights())
        drawn_with = max(learner.version - lead, 0)
        metrics: Metrics = {}
        waited = 0.0
        batches: deque[Trajectories] = deque(maxlen=training.n_critic)  # the policy step's
        shards = self.collector.results()
        for update in range(self._num_updates(self.iteration)):
            asked = time.perf_counter()
            batch = Trajectories.concatenate(list(islice(shards, per_update)))
            waited += time.perf_counter() - asked
            assert batch.policy_version == drawn_with, "trajectories of another version"
            batch = batch.to(learner.device)
            batches.append(batch)
            if update < self._num_unscored(self.iteration):
                learner.update_critic(batch.final, self.iteration, update, batch.labels)
                continue
            scores, watched = learner.judge(batch, self.iteration, update)
            metrics |= watched
            if learner.algorithm.uses_value:
                metrics |= learner.update_value(batch, scores)
        trajectories = Trajectories.concatenate(batches)
        del batch, batches, shards  # joined: the policy step need not hold them twice
        iteration, self.iteration = self.iteration, self.iteration + 1
        if (
            self._evaluates() and learner.algorithm.baseline != "none"
        ):  # of the policy that drew them
            metrics |= baseline_quality(
                trajectories, learner.networks, learner.algorithm, learner.team
            )
        if lead:
            metrics |= staleness(trajectories, learner.networks)
        metrics |= learner.update_policy(trajectories, iteration)
        if not lead and metrics.get("first_ratio_deviation", 0.0) > MAX_RATIO_DEVIATION:
            self.observer.warn(
                f"iteration {self.iteration}: the likelihood ratio is off 1 by "
                f"{metrics['first_ratio_deviation']:.3g} on the first pass"
            )
        if self._evaluates():
            metrics |= drift(trajectories, learner.networks)
            metrics |= critic_slope(trajectories, learner.networks)
        seconds = time.perf_counter() - started
        return {
            "iteration": self.iteration,
            "seconds": seconds,
            "seconds_waiting": waited,
            "trajectories_per_second": len(trajectories) / seconds,
            **metrics,
        }
