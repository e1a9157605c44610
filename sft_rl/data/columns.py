"""Columns of numbers with names: which of them are the points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sft_rl.errors import UserError, did_you_mean

Array = np.ndarray
UNNAMED = ("", "Unnamed: 0")
"""What pandas and R write above an index, and what pandas makes of it."""


@dataclass(frozen=True)
class NumberTable:
    """What a file of points holds.

    Attributes:
        names: Of the columns.
        values: float64, shape (rows, columns).
        notes: What was found out about it, a line each by its name.
    """

    names: tuple[str, ...]
    values: Array
    notes: dict[str, str] = field(default_factory=dict)


def chosen(names: Sequence[str], wanted: Sequence[str] | None, source: str) -> list[int]:
    """Positions of the columns that `data.columns` names, or of all.

    Raises:
        UserError: For a name that no column has, or several.
    """
    for name in wanted or ():
        if name not in names:
            raise UserError(f"data.columns: {source} has no {name!r}; {did_you_mean(name, names)}")
        if names.count(name) > 1:
            raise UserError(f"data.columns: {source} has {names.count(name)} columns {name!r}")
    return [names.index(name) for name in wanted] if wanted else list(range(len(names)))


def split_off(
    table: NumberTable, names: Sequence[str], source: str
) -> tuple[NumberTable, NumberTable]:
    """Part the columns of `data.condition_columns` from the points.

    Raises:
        UserError: For a name that no column has, or if no other column is left.
    """
    for name in names:
        if name not in table.names:
            hint = did_you_mean(name, table.names)
            raise UserError(f"data.condition_columns: {source} has no {name!r}; {hint}")
    others = [name for name in table.names if name not in names]
    if not others:
        raise UserError(f"data.condition_columns: {source} has no other columns for the points")
    points, given = (
        replace(
            table,
            names=tuple(part),
            values=table.values[:, [table.names.index(name) for name in part]],
        )
        for part in (others, names)
    )
    return points, given


def without_index(table: NumberTable, source: str) -> NumberTable:
    """Leave out an index that was written beside the points.

    That is an unnamed first column that counts the rows. Any other column that may be one is
    refused, and `data.columns` settles what it is.

    Raises:
        UserError: Naming it.
    """
    names = table.names
    if len(names) < 2:
        return table
    first = table.values[:, 0]
    counts = np.array_equal(first, first[0] + np.arange(len(first)))
    rest = ",".join(names[1:])
    if names[0] in UNNAMED and counts:
        notes = table.notes | {"left out": "the unnamed first column, which counts the rows"}
        return replace(table, names=names[1:], values=table.values[:, 1:], notes=notes)
    if names[0] in UNNAMED:
        raise UserError(
            f"{source}: its first column has no name and may be an index; "
            f"data.columns=[{rest}] leaves it out"
        )
    if counts:
        raise UserError(
            f"{source}: its first column {names[0]!r} counts the rows; data.columns=[{rest}] "
            f"leaves it out, data.columns=[{names[0]},{rest}] keeps it"
        )
    return table
