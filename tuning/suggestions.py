"""Hands the trials of a search to Tune, one after another, until a limit is reached."""

from __future__ import annotations

import time
from typing import Any

from ray.tune.search import Searcher

from tuning.limits import NO_LIMITS, Limits
from tuning.records import Records
from tuning.search import Search


class InTurn(Searcher):  # type: ignore[misc, unused-ignore]
    """Gives each trial its number and its values, drawn at random or listed.

    A configuration that has begun is measured with all its seeds.

    Args:
        search: The search.
        records: All trials; what is known of earlier sessions.
        waiting: Numbers of the trials to give, in order.
        limits: When no other configuration is begun.
    """

    def __init__(
        self, search: Search, records: Records, waiting: list[int], limits: Limits = NO_LIMITS
    ) -> None:
        super().__init__()
        self.search = search
        self.records = records
        self.reached = ""
        self._waiting = list(waiting)
        self._limits = limits
        self._started = time.monotonic()
        self._values = {r.index // search.seeds: r.values for r in records.all()}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the next trial, or that there is none."""
        while self._waiting:
            index = self._waiting.pop(0)
            number = index // self.search.seeds
            if number not in self._values:
                self.reached = self.reached or self._limits.reached(
                    self.search, self.records, self._started
                )
                if self.reached:
                    continue
                self._values[number] = self.choose(number)
            self.begin(trial_id, index)
            return {"trial": self.search.trial(index, self._values[number])}
        return str(Searcher.FINISHED)

    def choose(self, number: int) -> dict[str, Any]:
        """Return the values of a configuration that begins."""
        return self.search.planned(number)

    def begin(self, trial_id: str, index: int) -> None:
        """Take note that a trial begins."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take note that one has ended."""
