"""Which configuration is best: by validation, over the seeds that it was measured with."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tuning.distribution import Values
from tuning.records import Record, Records, State
from tuning.search import STEPS, Search

WIDTH = 2.0
"""Standard errors on each side of a mean that make its interval."""

PRECEDENCE: tuple[State, ...] = ("failed", "running", "waiting", "stopped", "done")
"""The state of a configuration is the first of these that one of its trials has."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error, which is NaN where one number gives none."""

    mean: float
    error: float = math.nan

    @staticmethod
    def of(numbers: Sequence[float]) -> Estimate:
        """Average what several seeds gave."""
        mean = statistics.fmean(numbers)
        if len(numbers) == 1:
            return Estimate(mean)
        return Estimate(mean, statistics.stdev(numbers) / math.sqrt(len(numbers)))

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + ("" if math.isnan(self.error) else f" ± {self.error:.4f}")

    def is_below(self, other: Estimate) -> bool:
        """Whether its interval lies below another's as a whole; never without errors."""
        return self.mean + WIDTH * self.error < other.mean - WIDTH * other.error


@dataclass(frozen=True)
class Configuration:
    """What was searched, and its trials, one a seed.

    Attributes:
        number: Its number.
        values: The searched keys.
        num_steps: Denoising steps.
        is_own: Whether all that is searched has the preset's own value.
        trials: Those that have begun.
        state: ``done`` if all are; ``failed`` if one is: a seed that fails may be yours.
        validation: Mean of the trials' distances on validation data; NaN before the first.
    """

    number: int
    values: Values
    num_steps: int
    is_own: bool
    trials: tuple[Record, ...]
    state: State
    validation: Estimate

    @property
    def label(self) -> str:
        """Names its trials."""
        first, last = self.trials[0].index, self.trials[-1].index
        return f"trial {first}" if first == last else f"trials {first} to {last}"


def configurations(search: Search, records: Records, seeds: int = 0) -> list[Configuration]:
    """Put the trials of each configuration together.

    Args:
        search: The search.
        records: Its trials, or others in the same order.
        seeds: How many follow each other with the same values, if not as many as in the search.
    """
    seeds = seeds or search.seeds
    groups: dict[int, list[Record]] = {}
    for record in records.all():
        groups.setdefault(record.index // seeds, []).append(record)
    found = []
    for number, trials in sorted(groups.items()):
        values = trials[0].values
        num_steps = search.value(values, STEPS)
        states = {record.state for record in trials}
        states |= {"waiting"} if len(trials) < seeds else set()
        found.append(
            Configuration(
                number,
                values,
                num_steps,
                values == search.own(num_steps),
                tuple(trials),
                next(state for state in PRECEDENCE if state in states),
                validation_of(search, trials),
            )
        )
    return found


def validation_of(search: Search, trials: list[Record]) -> Estimate:
    """Average trials with the same values; NaN before the first has been measured."""
    known = [v for v in (validation(search, record) for record in trials) if v is not None]
    return Estimate.of(known) if known else Estimate(math.nan)


def validation(search: Search, record: Record) -> float | None:
    """Return the distance of a trial's sampler on validation data: of its newest, or its best.

    What is measured on held-out data at the end of a run has no say in a search.
    """
    distances = [distance for _, distance in record.curve]
    if not distances:
        return None
    chosen = search.value(record.values, "training.select_best")
    return min(distances) if chosen else distances[-1]


def best_by_steps(found: Iterable[Configuration]) -> dict[int, Configuration]:
    """Return the best configuration of each number of steps; the first one of equals."""
    best: dict[int, Configuration] = {}
    done = [one for one in found if one.state == "done"]
    for one in sorted(done, key=lambda one: (one.validation.mean, one.number)):
        best.setdefault(one.num_steps, one)
    return dict(sorted(best.items()))


def since_the_best(found: Iterable[Configuration]) -> int:
    """Return how many came to their end since one was the best of its number of steps."""
    best: dict[int, float] = {}
    since = 0
    for one in found:
        if one.state in ("done", "stopped", "failed"):
            since += 1
            if one.state == "done" and one.validation.mean < best.get(one.num_steps, math.inf):
                best[one.num_steps], since = one.validation.mean, 0
    return since


def pareto_front(points: Sequence[tuple[int, float]]) -> list[bool]:
    """Say of each (steps, distance) whether no other has fewer or equal steps and is better."""
    order = sorted(range(len(points)), key=lambda i: points[i])
    on_front, best = [False] * len(points), float("inf")
    for i in order:
        on_front[i] = points[i][1] < best
        best = min(best, points[i][1])
    return on_front
