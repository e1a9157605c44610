"""Prompts in files: lines of text, or a column of a table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sft_rl.config import PromptsConfig
from sft_rl.errors import UserError, first_line, shortened

ENDINGS = (".txt", ".csv", ".jsonl", ".parquet")
COLUMNS = ("prompt", "caption", "text")
MOST_BYTES = 200_000
"""Of all prompts together: they are in the run's settings."""


def read_prompts(config: PromptsConfig) -> tuple[str, ...]:
    """Read the different prompts of a file, in its order.

    Raises:
        UserError: If there is no such file or column, or it holds no prompts or too much.
    """
    file = Path(config.path or "")
    if not file.is_file() or file.suffix not in ENDINGS:
        raise UserError(
            f"prompts.path: expected a file that ends in {', '.join(ENDINGS)}, got {file}"
        )
    if file.suffix != ".txt":
        values = _column(file, config.column)
    elif config.column is not None:
        raise UserError(f"prompts.column: {file} is no table, got {config.column!r}")
    else:
        values = _lines(file)
    return checked_prompts(values, f"prompts.path: {file}")


def checked_prompts(values: Iterable[Any], source: str) -> tuple[str, ...]:
    """Take the different texts of some values, in their order.

    Args:
        values: They should be texts.
        source: Where they came from, the beginning of an error.

    Raises:
        UserError: If one is no text, there are none, or they are too long together.
    """
    found: dict[str, None] = {}
    for number, value in enumerate(values):
        if not isinstance(value, str) or "\0" in value:
            raise UserError(f"{source}: row {number} holds no text: {shortened(value)}")
        if text := " ".join(value.split()):
            found[text] = None
    if not found:
        raise UserError(f"{source} holds no prompts")
    num_bytes = sum(len(text.encode()) for text in found)
    if num_bytes > MOST_BYTES:
        raise UserError(
            f"{source} holds {len(found):,} prompts of {num_bytes:,} bytes; take at most "
            f"{MOST_BYTES:,} together, which a run keeps in its settings"
        )
    return tuple(found)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"prompts.path: {file} is not UTF-8: {first_line(error)}") from error


def _column(file: Path, column: str | None) -> list[Any]:
    """Values of a table's column of prompts."""
    rows: Any
    try:
        if file.suffix == ".jsonl":
            rows = [json.loads(line) for line in _lines(file) if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise UserError(f"prompts.path: {file}: every line holds one {{…}}")
            names = list(dict.fromkeys(name for row in rows for name in row))
        else:
            import pandas as pd  # here, since it is slow to import

            read = pd.read_parquet if file.suffix == ".parquet" else pd.read_csv
            rows = read(file)
            names = list(map(str, rows.columns))
    except (ValueError, OSError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"prompts.path: cannot read {file}: {first_line(error)}") from error
    found = column or next((name for name in COLUMNS if name in names), None)
    if found not in names:
        wanted = repr(column) if column else " or ".join(COLUMNS)
        raise UserError(
            f"prompts.column: {file} has no column {wanted}, but {', '.join(names) or 'none'}"
        )
    return [row.get(found) for row in rows] if isinstance(rows, list) else rows[found].tolist()
