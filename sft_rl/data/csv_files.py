"""Tables of numbers in text: which separator, which decimal sign, and whether names come first.

What is found out is said, and what cannot be is refused with the setting that settles it.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np

from sft_rl.config import DataConfig
from sft_rl.data.columns import NumberTable, chosen
from sft_rl.errors import UserError

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "space": " "}
MAX_LINE = 2**20
HEAD = 200
"""Rows that are looked at to find the form out."""
DECIMAL_COMMA = re.compile(r"[+-]?\d+(,\d+)?(e[+-]?\d+)?", re.IGNORECASE)
Rows = list[list[str]]


@dataclass(frozen=True)
class Form:
    """How a file writes its table.

    Attributes:
        separator: Its name.
        decimal: ``.`` or ``,``.
        rows: Cells of the first rows.
    """

    separator: str
    decimal: str
    rows: Rows

    @property
    def width(self) -> int:
        """Fields of a row of numbers."""
        return len(self.rows[-1])

    @property
    def is_regular(self) -> bool:
        """Whether all rows have as many fields; names may lack the first or last one's."""
        body = {len(row) for row in self.rows[1:] or self.rows}
        return len(body) == 1 and len(self.rows[0]) in (self.width - 1, self.width)

    @property
    def holds_numbers(self) -> bool:
        """Whether all fields below the first row are numbers, or empty."""
        return all(not c or self.is_number(c) for row in self.rows[1:] or self.rows for c in row)

    def is_number(self, cell: str) -> bool:
        """Whether a field is a number in this form."""
        if self.decimal == ",":
            return DECIMAL_COMMA.fullmatch(cell) is not None
        try:
            return "_" not in cell and bool(str(float(cell)))
        except ValueError:
            return False


def read_csv(file: Path, config: DataConfig) -> NumberTable:
    """Read a .csv or .csv.gz file.

    Raises:
        UserError: If its form or a field cannot be made out.
    """
    source = f"data.path: {file}"
    with _lines(file) as lines:
        form = _form(list(islice(lines, HEAD)), config, source)
    names = _names(form, config.header, source)
    body = form.rows if names is None else form.rows[1:]
    if not body:
        raise UserError(f"{source} has no rows")
    has_end = form.width > 1 and not any(row[-1] for row in body)  # a separator ends every row
    width = form.width - has_end
    labels = [str(i) for i in range(width)] if names is None else names[:width]
    if len(labels) < width:
        labels = ["", *labels]  # of the index
    columns = chosen(labels, config.columns, source)
    _refuse_text(form, body, labels, columns, source)
    with _lines(file) as lines:
        if names is not None:
            next(lines)
        values = _numbers(_regular(lines, form, has_end, source), form, columns)
    decimal = ", decimal comma" if form.decimal == "," else ""
    notes = {"separator": f"{form.separator}{decimal}"} if form.width > 1 else {}
    return NumberTable(tuple(labels[i] for i in columns), values, notes)


@contextmanager
def _lines(file: Path) -> Iterator[Iterator[str]]:
    """Lines of a text that hold anything."""
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8-sig") as stream:
        yield (line for line in _bounded(stream, file) if line.strip())


def _bounded(stream: TextIO, file: Path) -> Iterator[str]:
    while line := stream.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise UserError(f"data.path: {file} has a line of {MAX_LINE} characters or more")
        yield line


def _regular(lines: Iterable[str], form: Form, has_end: bool, source: str) -> Iterator[str]:
    """Pass rows on that have as many fields as the first ones, which numpy does not see."""
    sign = SEPARATORS[form.separator]
    for number, line in enumerate(lines):
        if form.separator != "space" and '"' not in line and line.count(sign) != form.width - 1:
            found = line.count(sign) + 1
            raise UserError(f"{source}: row {number} has {found} fields, others {form.width}")
        if has_end and not line.rstrip("\r\n ").endswith(sign):
            raise UserError(f"{source}: row {number} does not end with {sign!r} as others do")
        yield line


def _form(lines: list[str], config: DataConfig, source: str) -> Form:
    """Find the one separator and decimal sign with which a file is a table of numbers."""
    if not lines:
        raise UserError(f"{source} has no rows")
    lines[0] = re.sub(r"^# *", "", lines[0])  # as numpy.savetxt writes names
    wanted = [config.separator] if config.separator else list(SEPARATORS)
    forms = []
    for separator in wanted:
        sign = SEPARATORS[separator]
        rows = (
            [line.split() for line in lines]
            if separator == "space"
            else [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=sign)]
        )
        decimals = "." if separator == "comma" else ".,"
        forms += [Form(separator, decimal, rows) for decimal in decimals]
    regular = [form for form in forms if form.is_regular and (form.width > 1 or config.separator)]
    numbers = [form for form in regular if form.holds_numbers]
    lone = [form for form in forms if form.width == 1 and form.is_regular and form.holds_numbers]
    if numbers and lone and len(numbers[0].rows[0]) == 1 and not config.separator:
        raise UserError(
            f"{source}: one name stands above numbers with a comma, which may be decimal or part "
            "an index; data.separator=semicolon or comma settles it"
        )
    for found in (numbers, lone, regular):
        if found:
            return found[0]
    raise UserError(f"{source}: {_irregular(forms[0])}; data.separator says what parts its columns")


def _irregular(form: Form) -> str:
    """Why a file is no table, taken to be written in one form."""
    width = len(form.rows[0])
    odd = next((i for i, row in enumerate(form.rows) if len(row) != width), None)
    if odd is None or width == 1:
        return "its lines are no rows of numbers"
    return f"line {odd + 1} has {len(form.rows[odd])} fields, the first {width}"


def _names(form: Form, header: bool | None, source: str) -> list[str] | None:
    """Names of the columns, if the first row has them."""
    first, body = form.rows[0], form.rows[1:]
    if header is not None:
        return first if header else None
    numeric = [form.is_number(cell) for cell in first]
    if not any(numeric):
        return first
    settle = "data.header=true or false says whether it names the columns"
    if not all(numeric):
        shown = SEPARATORS[form.separator].join(first)
        raise UserError(f"{source}: its first row {shown!r} is neither numbers nor names; {settle}")
    if first != [str(i) for i in range(len(first))] or not body:
        return None
    if all(cell.lstrip("+-").isdigit() for row in body for cell in row):
        raise UserError(f"{source}: its first row counts from 0 and may be a point; {settle}")
    return first


def _refuse_text(form: Form, body: Rows, names: list[str], columns: list[int], source: str) -> None:
    """Name the first column that holds text, and those that do not."""
    numeric = [
        i for i in range(len(names)) if all(not row[i] or form.is_number(row[i]) for row in body)
    ]
    for i in columns:
        if i not in numeric:
            number, cell = next(
                (n, row[i]) for n, row in enumerate(body) if row[i] and not form.is_number(row[i])
            )
            hint = ",".join(names[j] for j in columns if j in numeric)
            hint = f"; data.columns=[{hint}] leaves it out" if hint else ""
            raise UserError(
                f"{source}: column {names[i]!r} is no number in row {number}: {cell!r}{hint}"
            )


def _numbers(lines: Iterable[str], form: Form, columns: list[int]) -> np.ndarray:
    """Read rows of numbers, float64, shape (rows, columns)."""
    if form.decimal == ",":
        lines = (line.replace(",", ".") for line in lines)
    return np.loadtxt(
        lines,
        delimiter=None if form.separator == "space" else SEPARATORS[form.separator],
        usecols=columns,
        ndmin=2,
        comments=None,
        quotechar='"',
    )
