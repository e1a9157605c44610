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
"""Of all prompts together, and of their metadata: they are in the run's settings."""
Metadata = dict[str, Any]
"""What a table says of a prompt, by column: texts, numbers, truths, None, and lists and mappings of
these."""


def read_prompts(config: PromptsConfig) -> dict[str, Metadata]:
    """Read the different prompts of a file, in its order, with what else it says of each.

    Raises:
        UserError: If there is no such file or column, it holds no prompts or too much, or says two
            things of a prompt.
    """
    file = Path(config.path or "")
    if not file.is_file() or file.suffix not in ENDINGS:
        raise UserError(
            f"prompts.path: expected a file that ends in {', '.join(ENDINGS)}, got {file}"
        )
    source = f"prompts.path: {file}"
    if file.suffix == ".txt":
        for name, given in (("column", config.column), ("metadata", config.metadata)):
            if given:
                raise UserError(f"prompts.{name}: {file} is no table, got {given!r}")
        return {text: {} for text in checked_prompts(_lines(file), source)}
    texts, rows = _table(file, config)
    checked_prompts(texts, source)
    found: dict[str, Metadata] = {}
    for number, (text, row) in enumerate(zip(texts, rows, strict=True)):
        if (prompt := plain(text)) and found.setdefault(prompt, row) != row:
            raise UserError(f"{source}: row {number} says other things of {shortened(prompt)}")
    _check_size([json.dumps(row) for row in found.values()], "metadata", source)
    return found


def plain(text: str) -> str:
    """A prompt with single spaces between its words."""
    return " ".join(text.split())


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
        if text := plain(value):
            found[text] = None
    if not found:
        raise UserError(f"{source} holds no prompts")
    _check_size(list(found), f"{len(found):,} prompts", source)
    return tuple(found)


def _check_size(texts: list[str], what: str, source: str) -> None:
    num_bytes = sum(len(text.encode()) for text in texts)
    if num_bytes > MOST_BYTES:
        raise UserError(
            f"{source} holds {what} of {num_bytes:,} bytes; take at most "
            f"{MOST_BYTES:,} together, which a run keeps in its settings"
        )


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"prompts.path: {file} is not UTF-8: {first_line(error)}") from error


def _table(file: Path, config: PromptsConfig) -> tuple[list[Any], list[Metadata]]:
    """A table's column of prompts, and the rows of those of metadata, as JSON has them."""
    table: Any
    try:
        if file.suffix == ".jsonl":
            table = [json.loads(line) for line in _lines(file) if line.strip()]
            if not all(isinstance(row, dict) for row in table):
                raise UserError(f"prompts.path: {file}: every line holds one {{…}}")
            names = list(dict.fromkeys(name for row in table for name in row))
        else:
            import pandas as pd  # here, since it is slow to import

            read = pd.read_parquet if file.suffix == ".parquet" else pd.read_csv
            table = read(file)
            table.columns = names = list(map(str, table.columns))
        column = config.column or next((name for name in COLUMNS if name in names), None)
        for field, name in (("column", column), *(("metadata", own) for own in config.metadata)):
            if name not in names:
                wanted = repr(name) if name else " or ".join(COLUMNS)
                raise UserError(
                    f"prompts.{field}: {file} has no column {wanted}, but "
                    f"{', '.join(names) or 'none'}"
                )
        if not isinstance(table, list):
            table = table[list(dict.fromkeys([column, *config.metadata]))]
            table = json.loads(table.to_json(orient="records", double_precision=15))
    except (ValueError, OSError, OverflowError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"prompts.path: cannot read {file}: {first_line(error)}") from error
    return [row.get(column) for row in table], [
        {name: row.get(name) for name in config.metadata} for row in table
    ]
