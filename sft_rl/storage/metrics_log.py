"""metrics.csv: one row an iteration, none twice and none missing, whatever happened.

A number that comes up later begins a column; one that is missing leaves its place empty.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from sft_rl.storage.files import read_regular, replace_file, saving, sync
from sft_rl.types import Metrics


class MetricsLog:
    """Appends rows to a CSV file whose first row names the columns.

    Args:
        file: The file; it is made with the first row.
        sparse: Says, for the first row, which columns it may not have yet.
    """

    def __init__(self, file: Path, *, sparse: Callable[[], Sequence[str]] = tuple) -> None:
        self.file = file
        self.sparse = sparse
        self._columns: list[str] = []

    def append(self, row: Metrics) -> None:
        """Write one iteration's numbers.

        Raises:
            SaveError: If there is no room or no permission.
        """
        text = io.StringIO()
        if not self._columns:
            self._columns = [*row, *(name for name in self.sparse() if name not in row)]
            csv.writer(text).writerow(self._columns)
        elif new := [name for name in row if name not in self._columns]:
            self._widen(new)
        csv.DictWriter(text, self._columns, restval="").writerow(row)
        with saving(self.file, len(text.getvalue())), self.file.open("a", newline="") as stream:
            stream.write(text.getvalue())

    def _widen(self, new: list[str]) -> None:
        """Begin columns, empty so far."""
        with self.file.open(newline="") as stream:
            header, *rows = csv.reader(stream)
        text = io.StringIO()
        csv.writer(text).writerows([header + new, *(row + [""] * len(new) for row in rows)])
        with saving(self.file, len(text.getvalue())):
            replace_file(self.file, text.getvalue().encode())
        self._columns = header + new

    def sync(self) -> None:
        """Return when the disk has all rows; a checkpoint must not be ahead of them."""
        if self.file.exists():
            with saving(self.file):
                sync(self.file)
                sync(self.file.parent)

    def cut(self, iteration: int) -> list[int]:
        """Keep the rows up to an iteration: the later ones will be written again.

        A row that was being written when the run died is torn; it is always a later one.

        Returns:
            Iterations whose rows are lost: somebody has edited or emptied the file.
        """
        rows: dict[int, list[str]] = {}
        if iteration > 0 and self.file.exists():
            rows = self._rows()
        kept = [number for number in sorted(rows) if number <= iteration]
        if kept:
            text = io.StringIO()
            csv.writer(text).writerows([self._columns, *(rows[number] for number in kept)])
            replace_file(self.file, text.getvalue().encode())
        else:
            self._columns = []
            self.file.unlink(missing_ok=True)
        return sorted({*range(1, iteration + 1)} - {*kept})

    def _rows(self) -> dict[int, list[str]]:
        """Whole rows by iteration; their columns are kept."""
        text = read_regular(self.file).decode("utf-8", errors="replace")
        try:
            self._columns, *rows = csv.reader(io.StringIO(text, newline=""))
            column = self._columns.index("iteration")
        except (ValueError, csv.Error):  # no header, or none of ours
            return {}
        whole = [row for row in rows if len(row) == len(self._columns)]
        return {int(row[column]): row for row in whole if row[column].isdecimal()}
