"""Metrics as a person reads them: a row a metric, a column a sampler, with errors."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

from sft_rl.storage.files import replace_file, saving
from sft_rl.types import Metrics

Table = dict[str, list[str]]
"""Cells of a row by its name; the row called "" holds the names of the columns."""
ERRORS = ("_se", "_sd")
FLOOR = "noise floor"


def number(metrics: Metrics, name: str) -> str:
    """Write a metric, with its standard error, or its scatter over draws, where it is known."""
    if name not in metrics:
        return ""
    errors = [f" ± {metrics[name + kind]:.4f}" for kind in ERRORS if name + kind in metrics]
    return f"{metrics[name]:.4f}{errors[0] if errors else ''}"


def comparison(columns: dict[str, Metrics], names: list[str]) -> Table:
    """Set the metrics of several samplers side by side."""
    rows = {name: [number(metrics, name) for metrics in columns.values()] for name in names}
    return {"": list(columns), **rows}


def names_of(metrics: Metrics) -> list[str]:
    """Names of the metrics, without their errors."""
    return [name for name in metrics if not name.endswith(ERRORS)]


def final_table(summary: dict[str, Any]) -> Table:
    """What a run's summary says of its sampler, before and after, and of the full steps."""
    num, full = summary["num_steps"], summary["full_step"]
    columns = {f"{num} steps, before": summary["before"], f"{num} steps, after": summary["final"]}
    if "nfe" in full:  # else `metrics.full_step` is off
        columns[f"{full['nfe']} steps"] = full
    columns[FLOOR] = full["noise_floors"]
    return comparison(columns, names_of(summary["final"])) | _by_class(summary.get("classes", {}))


def _by_class(classes: dict[str, list[Metrics]]) -> Table:
    """Rows of what is measured of each class, before and after."""
    columns = [classes.get(when, []) for when in ("before", "final")]
    return {
        f"agreement, class {label}": [number(metrics, "agreement") for metrics in both]
        for label, both in enumerate(zip(*columns, strict=True))
        if "agreement" in both[0]
    }


def write_by_prompt(file: Path, prompts: Sequence[str], measured: dict[str, list[Metrics]]) -> None:
    """Write what is measured of each prompt alone as a table: a row a prompt.

    Args:
        file: A .csv.
        prompts: K texts.
        measured: K rows of numbers each, by the name of the sampler, which ends a column's.
    """
    columns = [
        [{f"{name}_{sampler}": value for name, value in row.items()} for row in rows]
        for sampler, rows in measured.items()
        if rows
    ]
    rows = [reduce(or_, own) for own in zip(*columns, strict=True)]
    if not rows:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, ["prompt", *rows[0]])
    writer.writeheader()
    writer.writerows({"prompt": p, **row} for p, row in zip(prompts, rows, strict=True))
    with saving(file):
        replace_file(file, text.getvalue().encode())
