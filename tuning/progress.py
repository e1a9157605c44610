"""What a person sees of a search: one live table in a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
import time
from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from tuning.distribution import Values
from tuning.ranking import Configuration, best_by_steps, configurations, validation
from tuning.records import Record, Records
from tuning.search import STEPS, Search

PLAIN_EVERY_S = 10.0


class SearchView:
    """Shows how many trials run, are done, stopped early or failed, and the best so far.

    Args:
        search: The search.
        records: Its trials, or those of the winners.
        total: How many there will be.
        seeds: How many of them follow each other with the same values.
        what: What they are called.
    """

    def __init__(
        self, search: Search, records: Records, total: int, *, seeds: int, what: str = "trial"
    ) -> None:
        self.search = search
        self.records = records
        self.total = total
        self.seeds = seeds
        self.what = what
        self.console = Console(highlight=False)
        self._told = -PLAIN_EVERY_S
        self._live = Live(console=self.console, auto_refresh=False) if sys.stdout.isatty() else None

    def __enter__(self) -> SearchView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def changed(self, record: Record) -> None:
        """Show that a trial began, ended or got further."""
        if self._live is not None:
            self._live.update(self.table(), refresh=True)
        elif record.state != "running" or time.monotonic() - self._told > PLAIN_EVERY_S:
            self._told = time.monotonic()
            self._say(record)

    def _say(self, record: Record) -> None:
        over = sum(r.is_over for r in self.records.all())
        parts = [
            f"[{over}/{self.total}]",
            f"{self.what} {record.index:03d}",
            show_values(record.values),
            f"seed={record.seed}",
            record.state if record.state != "running" else f"{record.percent:.0f} %",
        ]
        distance = validation(self.search, record)
        if distance is not None:
            parts.append(f"validation {distance:.4f}")
        if record.error:
            parts.append(record.error)
        print("  ".join(parts), flush=True)  # noqa: T201

    def table(self) -> Table:
        """Return the table of all trials by number of steps."""
        records = self.records.all()
        best = best_by_steps(configurations(self.search, self.records, self.seeds))
        groups: dict[int, list[Record]] = {}
        for record in records:
            groups.setdefault(self.search.value(record.values, STEPS), []).append(record)
        waiting = self.total - len(records)
        table = Table(caption=f"{waiting} of {self.total} {self.what}s not started yet")
        for name in ("steps", "running", "done", "stopped early", "failed", "best", "with"):
            table.add_column(name, justify="left" if name == "with" else "right")
        for steps, group in sorted(groups.items()):
            states = Counter(record.state for record in group)
            counts = [str(states[s]) for s in ("running", "done", "stopped", "failed")]
            table.add_row(str(steps), *counts, *_shown(best.get(steps)))
        return table


def _shown(best: Configuration | None) -> tuple[str, str]:
    if best is None:
        return "", ""
    return str(best.validation), show_values({k: v for k, v in best.values.items() if k != STEPS})


def show_values(values: Values) -> str:
    """Write searched values in one short line."""
    return " ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in values.items()
    )
