"""What a person sees of a search: one live table in a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
import time
from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from tuning.records import Record, Records
from tuning.search import STEPS, Search
from tuning.space import Values

PLAIN_EVERY_S = 10.0


class SearchView:
    """Shows how many trials run, are done, stopped early or failed, and the best so far.

    Args:
        search: The search.
        records: Its trials.
    """

    def __init__(self, search: Search, records: Records) -> None:
        self.search = search
        self.records = records
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
        over = sum(r.state in ("done", "stopped", "failed") for r in self.records.all())
        parts = [
            f"[{over}/{self.search.num_trials}]",
            f"trial {record.index:03d}",
            show_values(record.values),
            record.state if record.state != "running" else f"{record.percent:.0f} %",
        ]
        quality = self.records.quality(record.index, self.search.metric)
        if quality is not None:
            parts.append(f"distance {quality:.4f}")
        if record.error:
            parts.append(record.error)
        print("  ".join(parts), flush=True)  # noqa: T201

    def table(self) -> Table:
        """Return the table of all trials by number of steps."""
        groups: dict[int, list[Record]] = {}
        for record in self.records.all():
            steps = record.values.get(STEPS) or self.search.num_steps_options[0]
            groups.setdefault(int(steps), []).append(record)
        waiting = self.search.num_trials - len(self.records.all())
        table = Table(caption=f"{waiting} of {self.search.num_trials} trials not started yet")
        for name in ("steps", "running", "done", "stopped early", "failed", "best", "with"):
            table.add_column(name, justify="left" if name == "with" else "right")
        for steps, group in sorted(groups.items()):
            states = Counter(record.state for record in group)
            best, values = self._best(group)
            counts = [str(states[s]) for s in ("running", "done", "stopped", "failed")]
            table.add_row(str(steps), *counts, best, values)
        return table

    def _best(self, group: list[Record]) -> tuple[str, str]:
        done = [
            (self.records.quality(r.index, self.search.metric), r.index)
            for r in group
            if r.state == "done"
        ]
        known = [(quality, index) for quality, index in done if quality is not None]
        if not known:
            return "", ""
        quality, index = min(known)
        values = {k: v for k, v in self.records[index].values.items() if k != STEPS}
        return f"{quality:.4f}", show_values(values)


def show_values(values: Values) -> str:
    """Write searched values in one short line."""
    return " ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in values.items()
    )
