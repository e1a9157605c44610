"""Keeps the records of the trials while Tune runs them."""

from __future__ import annotations

from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from tuning.progress import SearchView
from tuning.records import Record, Records
from tuning.search import DISTANCE


class Ledger(Callback):  # type: ignore[misc, unused-ignore]
    """Told by Tune of every event; writes it down and shows it.

    Args:
        records: The trials' records.
        view: Shows them.
    """

    def __init__(self, records: Records, view: SearchView) -> None:
        self._records = records
        self._view = view

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray saves its callbacks for a restore that is never asked for."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """A trial begins, again, or goes on with values taken over from another."""
        given = trial.config["trial"]
        begun = given["index"] in self._records
        old = self._of(trial) if begun else Record(**given)
        attempts = max(old.attempts, 1)
        self._put(old.updated(**given, state="running", attempts=attempts, error=""))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """A trial failed and gets another attempt."""
        old = self._of(trial)
        self._put(old.updated(attempts=old.attempts + 1))

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **_: Any,
    ) -> None:
        """A trial was evaluated, or could not run with its values."""
        old = self._of(trial)
        if "refused" in result:
            self._put(old.updated(error=result["refused"]))
            return
        point = (int(result["iteration"]), float(result[DISTANCE]))
        before = tuple(p for p in old.curve if p[0] < point[0])
        self._put(old.updated(percent=float(result["percent"]), curve=(*before, point)))

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: Any
    ) -> None:
        """A trial ended: to its end, early, or because its values were refused."""
        old = self._of(trial)
        if old.error:
            state, error = "failed", old.error
        elif self._records.summary(old.index) is not None:
            state, error = "done", ""
        elif old.percent >= 100.0:
            state = "failed"
            error = "its folder is not seen here: --out must be on storage that all nodes share"
        else:
            state, error = "stopped", ""
        self._put(old.updated(state=state, error=error))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """A trial failed for good."""
        lines = str(trial.get_error() or "").strip().splitlines()
        last = lines[-1].strip() if lines else "lost"
        self._put(self._of(trial).updated(state="failed", error=last[:300]))

    def _of(self, trial: Trial) -> Record:
        return self._records[trial.config["trial"]["index"]]

    def _put(self, record: Record) -> None:
        self._records.put(record)
        self._view.changed(record)
