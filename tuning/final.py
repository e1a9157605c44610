"""The winners of a search, and the preset's own, trained again with seeds it has not seen."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuning.distribution import Values
from tuning.objective import Objective
from tuning.ranking import Estimate, best_by_steps, configurations
from tuning.records import Record, Records
from tuning.search import Search


@dataclass(frozen=True)
class Contender:
    """What is trained again.

    Attributes:
        num_steps: Denoising steps.
        values: The searched keys.
        is_winner: Whether it is the best of the search for its steps.
        is_own: Whether it has the preset's own values.
    """

    num_steps: int
    values: Values
    is_winner: bool
    is_own: bool


def contenders(search: Search, records: Records) -> list[Contender]:
    """Return the winner of each number of steps, and beside it the preset's own; once if equal.

    There are none before every trial of the search is over.
    """
    if len(records) < search.num_runs or not all(r.is_over for r in records.all()):
        return []
    found = []
    for num_steps, best in best_by_steps(configurations(search, records)).items():
        found.append(Contender(num_steps, best.values, True, best.is_own))
        if not best.is_own:
            found.append(Contender(num_steps, search.own(num_steps), False, True))
    return found


def final_trials(search: Search, records: Records, finals: Records) -> list[dict[str, Any]]:
    """Return what the trials of the contenders are given.

    One that has begun keeps its number, also if a trial of the search that failed at first has
    made another the winner since.
    """
    known = {_key(record.values, record.seed): record.index for record in finals.all()}
    trials = []
    for one in contenders(search, records):
        for seed in final_seeds(search):
            new = max(known.values(), default=-1) + 1
            index = known.setdefault(_key(one.values, seed), new)
            trials.append({"index": index, "values": one.values, "seed": seed})
    return trials


def final_seeds(search: Search) -> range:
    """Return the seeds that follow those of the search."""
    first = search.seed + search.seeds
    return range(first, first + search.final_seeds)


def _key(values: Values, seed: int) -> str:
    return json.dumps([values, seed], sort_keys=True)


@dataclass(frozen=True)
class Result:
    """What a contender reached on held-out data.

    Attributes:
        contender: The contender.
        records: Its trials.
        held_out: Mean over its trials and their scatter; NaN unless all are done.
        before: The same sampler before fine-tuning, with its error of measurement.
    """

    contender: Contender
    records: tuple[Record, ...]
    held_out: Estimate
    before: Estimate

    @property
    def harm(self) -> str:
        """In words, that fine-tuning did no good; empty if it did."""
        if self.held_out.mean <= self.before.mean:
            return ""
        how = "worse" if self.before.is_below(self.held_out) else "no better"
        return f"; **{how} than not fine-tuned**"


def results(search: Search, records: Records, finals: Records) -> list[Result]:
    """Return what the contenders reached; nothing is chosen by it."""
    found, seeds = [], final_seeds(search)
    for one in contenders(search, records) if seeds else []:
        trials = [r for r in finals.all() if r.values == one.values and r.seed in seeds]
        held_out = before = Estimate(math.nan)
        if [record.state for record in trials] == ["done"] * len(seeds):
            held_out, before = measured(search.objective, trials, finals)
        found.append(Result(one, tuple(trials), held_out, before))
    return found


def measured(
    objective: Objective, trials: Sequence[Record], records: Records
) -> tuple[Estimate, Estimate]:
    """Return what finished trials reached on held-out data, and what they started from."""
    summaries = [s for record in trials if (s := records.summary(record.index)) is not None]
    before = summaries[0]["before"]
    return (
        Estimate.of([objective.of(summary["final"]) for summary in summaries]),
        Estimate(objective.of(before), objective.error_of(before)),
    )


def verdict(winner: Result, own: Result) -> str:
    """Say in words whether a search was worth it."""
    if math.isnan(winner.held_out.mean) or math.isnan(own.held_out.mean):
        return "not measured"
    if winner.contender.is_own:
        return f"the preset's own is the best{winner.harm}"
    a, b = winner.held_out, own.held_out
    gain = Estimate(abs(b.mean - a.mean), math.hypot(a.error, b.error))
    if a.is_below(b):
        return f"better than the preset by {gain}{winner.harm}"
    if b.is_below(a):
        return f"worse than the preset by {gain}{winner.harm}"
    return f"no better than the preset{winner.harm}"
