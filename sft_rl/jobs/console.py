"""What a person sees while a run goes on: a live line in a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sft_rl.config import DISTANCES
from sft_rl.types import Metrics

PLAIN_EVERY_S = 5.0


class CallbackObserver:
    """Passes every iteration to a function; warnings go to Python's own.

    Args:
        function: Called with iterations done and in all, and the newest numbers.
    """

    def __init__(self, function: Callable[[int, int, Metrics], None]) -> None:
        self._function = function

    def phase(self, name: str) -> None:
        """Phases are not passed on."""

    def warn(self, text: str) -> None:
        """Warn as Python does."""
        warnings.warn(text, stacklevel=2)

    def progress(self, done: int, total: int, metrics: Metrics) -> None:
        """Pass the numbers on."""
        self._function(done, total, metrics)


class ConsoleObserver:
    """Shows phase, iteration, leading metric, critic gap, speed and time left."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self._live = sys.stdout.isatty() or self.console.is_jupyter
        self._bar = Progress(
            TextColumn("{task.description:<17}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
            transient=False,
        )
        self._task: Any = None
        self._counted = False
        self._name = ""
        self._begun = time.perf_counter()
        self._told = 0.0
        self._measured = ""

    def __enter__(self) -> ConsoleObserver:
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:  # else it prints an empty line
            self._drop_uncounted()
            self._bar.stop()

    def phase(self, name: str) -> None:
        """Show that a phase begins."""
        self._name, self._begun = name, time.perf_counter()
        if not self._live:
            self._say(name)
            return
        self._drop_uncounted()
        self._task, self._counted = self._bar.add_task(name, total=None, numbers=""), False

    def _drop_uncounted(self) -> None:
        """Take a phase that never told how far it was off the screen."""
        if self._task is not None and not self._counted:
            self._bar.remove_task(self._task)
            self._task = None

    def warn(self, text: str) -> None:
        """Print a warning above the live line."""
        self.console.print(f"warning: {text}", markup=False, soft_wrap=True)

    def progress(self, done: int, total: int, metrics: Metrics) -> None:
        """Show how far the phase is; in a pipe at most one line in five seconds."""
        measured = [name for name in DISTANCES if name in metrics]
        if measured:
            self._measured = f"{measured[0].replace('_', ' ')} {metrics[measured[0]]:.4f}"
        numbers = self._numbers(metrics)
        if self._live:
            self._counted = True
            self._bar.update(self._task, total=total, completed=done, numbers=numbers)
            return
        now = time.perf_counter()
        if now - self._told < PLAIN_EVERY_S and done < total:
            return
        self._told = now
        left = (now - self._begun) / done * (total - done)
        self._say(f"{self._name} {done}/{total}  {numbers}  {left:.0f} s left")

    def _numbers(self, metrics: Metrics) -> str:
        parts = [self._measured] if self._measured else []
        for name, label, form in (
            ("critic_gap", "critic gap", ".3f"),
            ("trajectories_per_second", "trajectories/s", ".0f"),
            ("pretraining_loss", "loss", ".4f"),
        ):
            if name in metrics:
                parts.append(f"{label} {metrics[name]:{form}}")
        return "  ".join(parts)

    def _say(self, text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def table(self, title: str, rows: dict[str, str] | dict[str, list[str]]) -> None:
        """Print a short table: of names and a value each, or several; "" names the columns."""
        self.console.print(title, style="italic", markup=False, soft_wrap=True)
        table = Table(show_header="" in rows)
        for name, cells in rows.items():
            values = [Text(cell) for cell in ([cells] if isinstance(cells, str) else cells)]
            if name:
                table.add_row(Text(name), *values)
                continue
            table.add_column("", no_wrap=True)
            for column in values:
                table.add_column(column)
        self.console.print(table)
