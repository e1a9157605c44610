"""Optuna's TPE by ask and tell: quality alone, or quality against steps."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial

from sft_rl.seeding import derive_seed
from tuning.distribution import LISTED, LOG, WHOLE, Distribution
from tuning.limits import NO_LIMITS, Limits
from tuning.ranking import configurations, validation_of
from tuning.records import Records
from tuning.search import STEPS, Search
from tuning.suggestions import InTurn


class OptunaSearcher(InTurn):
    """Suggests configurations from the results so far.

    Where several step counts are searched the study has two objectives, distance and steps, which
    Ray's wrapper would need a metric of its own for; and it cannot be filled from a search that
    was interrupted without unpickling. So this one asks and tells by itself.

    Args:
        search: The search.
        records: All trials; finished ones of earlier sessions are told to the study.
        waiting: Numbers of the trials to suggest, in order.
        limits: When no other configuration is begun.
    """

    def __init__(
        self, search: Search, records: Records, waiting: list[int], limits: Limits = NO_LIMITS
    ) -> None:
        super().__init__(search, records, waiting, limits)
        self._left = Counter(index // search.seeds for index in waiting)
        self._asked: dict[int, optuna.Trial] = {}
        self._running: dict[str, int] = {}
        self._failed: set[int] = set()
        self._num_objectives = 2 if len(search.num_steps_options) > 1 else 1
        over = [one for one in configurations(search, records) if one.state in ("done", "stopped")]
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            directions=["minimize"] * self._num_objectives,
            sampler=optuna.samplers.TPESampler(
                seed=derive_seed(search.seed, "optuna", len(over)) % 2**32,
                n_startup_trials=max(4, search.num_trials // 4),
            ),
        )
        for one in over:
            self._add(one.number)

    def choose(self, number: int) -> dict[str, Any]:
        """Let Optuna choose; the first configurations are the preset's own."""
        if self.search.is_default(number):
            return self.search.planned(number)
        asked = self._asked[number] = self._study.ask()
        return self.search.space.filled({}, partial(_suggested, asked))

    def begin(self, trial_id: str, index: int) -> None:
        """See :meth:`InTurn.begin`."""
        self._running[trial_id] = index

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study of a configuration's end, when all its trials have come to theirs."""
        number = self._running.pop(trial_id) // self.search.seeds
        if error or "refused" in (result or {}):
            self._failed.add(number)
        self._left[number] -= 1
        if self._left[number]:
            return
        asked = self._asked.pop(number, None)
        if asked is None:
            self._add(number)
        elif objectives := self._objectives(number):
            self._study.tell(asked, objectives)
        else:
            self._study.tell(asked, state=TrialState.FAIL)

    def _add(self, number: int) -> None:
        """Add a configuration that was not asked for, unless it failed."""
        if objectives := self._objectives(number):
            values, space = self._values[number], self.search.space.distributions
            known = {key: _distribution(space[key]) for key in values}
            trial = create_trial(values=objectives, params=values, distributions=known)
            self._study.add_trial(trial)

    def _objectives(self, number: int) -> list[float]:
        """Distance and steps, where a trial that was stopped early counts with its last distance.

        None of a configuration that failed.
        """
        values, search = self._values[number], self.search
        trials = [r for r in self.records.all() if r.index // search.seeds == number]
        distance = validation_of(search, trials).mean
        if number in self._failed or math.isnan(distance):
            return []
        return [distance, float(search.value(values, STEPS))][: self._num_objectives]


def _distribution(given: Distribution) -> BaseDistribution:
    if given.kind in LISTED:
        return CategoricalDistribution(given.values)
    low, high = given.values
    kind = IntDistribution if given.kind in WHOLE else FloatDistribution
    return kind(low, high, log=given.kind in LOG)


def _suggested(trial: optuna.Trial, key: str, given: Distribution) -> Any:
    """Let Optuna choose a value; a step is ours, since it has none on a log axis."""
    if given.kind in LISTED:
        return trial.suggest_categorical(key, given.values)
    low, high = given.values
    suggest = trial.suggest_int if given.kind in WHOLE else trial.suggest_float
    return given.rounded(suggest(key, low, high, log=given.kind in LOG))
