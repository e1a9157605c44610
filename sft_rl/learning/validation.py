"""Evaluations on the way: what the policy is worth, and whether a reward is being hacked."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from sft_rl.algorithms import Networks
from sft_rl.learning.team import Team
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.policy import DenoisingPolicy
from sft_rl.seeding import generator
from sft_rl.types import Metrics, given

Measured = dict[str, tuple[float, float]]
"""Mean and standard deviation of scores, by the reward's name."""
MAX_LOST = 0.1
"""Precision or recall that may be lost while a reward rises, before it is called hacked."""
MAX_GROWTH = 2.0
"""Growth of the leading distance that may come with it, where those two are not measured."""
NUM_ERRORS = 3.0
"""Standard errors by which a reward must have risen."""


class Validation:
    """Measures policies against validation data and by every reward, always on the same noise.

    A policy's loss is what the result is chosen by: the leading distance where the critic is all
    that counts; else minus the objective. In that, minus the distance stands for the critic, whose
    scores of different times are not comparable, and a normalised reward is shifted and scaled by
    its scores of the untrained sampler.

    Args:
        evaluator: Measures samples.
        networks: Their objective, and the untrained sampler to compare with.
        num_scored: Samples that the rewards score.
        team: The learners that share the work; the leader asks the rewards.
        warn: Is told of a reward that is being hacked.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        networks: Networks,
        *,
        num_scored: int,
        team: Team,
        warn: Callable[[str], None],
    ) -> None:
        self.evaluator = evaluator
        self.objective = networks.objective
        self.untrained = networks.pretrained
        self.num_scored = num_scored
        self.team = team
        self.warn = warn
        self._start: Measured | None = None
        self._best: dict[str, tuple[float, Measured]] = {}
        self._warned: set[tuple[str, str]] = set()

    def __call__(self, policy: DenoisingPolicy) -> tuple[float, Metrics, np.ndarray | None]:
        """Return a policy's loss, the numbers, and a picture of its samples."""
        measured, picture = self.evaluator.validate(policy)
        if not self.objective.rewards:
            return measured[self.evaluator.name], measured, picture
        scored = self.scored(policy, "validation of rewards")
        self._look_for_hacking(measured, scored)
        worth = self.worth(measured[self.evaluator.name], scored)
        terms = {f"validation_{name}": mean for name, (mean, _) in scored.items()}
        return -worth, {**measured, "objective": worth, **terms}, picture

    def scored(self, policy: DenoisingPolicy, purpose: str) -> Measured:
        """Mean and standard deviation of every reward's raw scores of a policy's samples.

        The same purpose gives the same noise and labels, whatever the policy.
        """
        source = generator(self.evaluator.config.seed, purpose, device=policy.device)
        labels = policy.random_labels(self.num_scored, source)
        x = policy.sample(self.num_scored, source, labels)  # by all, if they split the policy
        scores = self.objective.looked_at(x, *given(labels)) if self.team.leads else {}
        return self.team.leaders(
            {k: (s.double().mean().item(), s.double().std().item()) for k, s in scores.items()}
        )

    def worth(self, distance: float, scored: Measured) -> float:
        """The objective, of a distance to data and the rewards' scores."""
        if self._start is None:
            self._start = self.scored(self.untrained, "validation of rewards")
        worth = 0.0
        for term in self.objective.terms:
            if term.score is None:
                value = -distance
            else:
                (value, _), (mean, std) = scored[term.config.name], self._start[term.config.name]
                if term.config.normalise != "none":
                    value = (value - mean) / (std or 1.0)
            worth += term.config.weight * value
        return worth

    def reported(self, policy: DenoisingPolicy, distance: float) -> Metrics:
        """The objective of a policy at a distance, and every reward's mean, on new noise.

        Each mean comes with its standard error; nothing where the critic is all that counts.
        """
        if not self.objective.rewards:
            return {}
        scored = self.scored(policy, "evaluation of rewards")
        metrics = {"objective": self.worth(distance, scored)}
        for name, (mean, std) in scored.items():
            metrics |= {f"term_{name}": mean, f"term_{name}_se": std / math.sqrt(self.num_scored)}
        return metrics

    def _look_for_hacking(self, measured: Metrics, scored: Measured) -> None:
        """Warn of a reward that has risen since the samples were nearest the data."""
        shares = measured.keys() & {"precision", "recall"}
        for name in sorted(shares) or [self.evaluator.name]:
            value = measured[name]
            best, then = self._best.get(name, (value, scored))
            if value >= best if shares else value <= best:
                self._best[name] = (value, scored)
            elif best - value > MAX_LOST if shares else value > MAX_GROWTH * best:
                self._warn_of(f"{name} went from {best:.3f} to {value:.3f}", name, then, scored)

    def _warn_of(self, what: str, name: str, then: Measured, now: Measured) -> None:
        for term in self.objective.rewards:
            own = term.config.name
            (before, spread), (after, other) = then[own], now[own]
            rise = math.copysign(1.0, term.config.weight) * (after - before)
            error = math.hypot(spread, other) / math.sqrt(self.num_scored)
            if rise > NUM_ERRORS * error and term.config.weight and (own, name) not in self._warned:
                self._warned.add((own, name))
                self.warn(
                    f"{own!r} may be hacked: it went from {before:.3f} to {after:.3f} "
                    f"while {what}; lower its weight, or give the critic more"
                )
