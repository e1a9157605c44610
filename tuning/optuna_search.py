"""Optuna's TPE by ask and tell: quality alone, or quality against steps."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial
from ray.tune.search import Searcher

from sft_rl.config.files import lookup
from sft_rl.seeding import derive_seed
from tuning.records import Records
from tuning.search import STEPS, Search
from tuning.space import Distribution


class OptunaSearcher(Searcher):  # type: ignore[misc, unused-ignore]
    """Suggests configurations from the results so far.

    Where several step counts are searched the study has two objectives, distance and steps, which
    Ray's wrapper would need a metric of its own for; and it cannot be filled from a search that
    was interrupted without unpickling. So this one asks and tells by itself.

    Args:
        search: The search.
        records: All trials; finished ones of earlier sessions are told to the study.
        waiting: Numbers of the trials to suggest, in order.
    """

    def __init__(self, search: Search, records: Records, waiting: list[int]) -> None:
        super().__init__()
        self._search = search
        self._records = records
        self._waiting = list(waiting)
        self._distributions = {k: _distribution(d) for k, d in search.space.distributions.items()}
        self._asked: dict[str, tuple[int, optuna.Trial | None]] = {}
        finished = [r for r in records.all() if r.state in ("done", "stopped")]
        self._num_objectives = 2 if len(search.num_steps_options) > 1 else 1
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            directions=["minimize"] * self._num_objectives,
            sampler=optuna.samplers.TPESampler(
                seed=derive_seed(search.seed, "optuna", len(finished)) % 2**32,
                n_startup_trials=max(4, search.num_trials // 4),
            ),
        )
        for record in finished:
            self._add(record.index, self._objectives(record.index))

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the next trial's number and values; the first ones run the preset's own."""
        if not self._waiting:
            return str(Searcher.FINISHED)
        index = self._waiting.pop(0)
        asked = None
        if index in self._records:  # begun in an earlier session
            values = self._records[index].values
        elif self._search.is_default(index):
            values = self._search.planned(index)
        else:
            asked = self._study.ask(self._distributions)
            values = {key: asked.params[key] for key in self._distributions}
        self._asked[trial_id] = (index, asked)
        return {"trial": {"index": index, "values": values}}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study of a trial's end."""
        index, asked = self._asked.pop(trial_id)
        failed = error or "refused" in (result or {})
        objectives = None if failed else self._objectives(index)
        if asked is None:
            self._add(index, objectives)
        elif objectives is None:
            self._study.tell(asked, state=TrialState.FAIL)
        else:
            self._study.tell(asked, objectives)

    def _add(self, index: int, objectives: list[float] | None) -> None:
        """Add a trial that was not asked for."""
        if objectives is None:
            return
        values = self._records[index].values
        self._study.add_trial(
            create_trial(values=objectives, params=values, distributions=self._distributions)
        )

    def _objectives(self, index: int) -> list[float] | None:
        """Distance and steps; a trial that was stopped early counts with its last distance."""
        distance = self._records.quality(index, self._search.metric)
        if distance is None:
            return None
        steps = float(lookup(self._search.config(self._records[index].values), STEPS))
        return [distance, steps][: self._num_objectives]


def _distribution(given: Distribution) -> BaseDistribution:
    if given.kind in ("grid", "choice"):
        return CategoricalDistribution(given.values)
    low, high = given.values
    if given.kind == "randint":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=given.kind == "loguniform")
