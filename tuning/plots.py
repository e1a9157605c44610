"""Pictures of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from tuning.records import Record
from tuning.search import STEPS, Search

BLUE, ORANGE, GREY = "#2a6f97", "#d1495b", "#8d99ae"
COLOURS = {"done": BLUE, "stopped": GREY, "failed": ORANGE, "running": GREY, "waiting": GREY}


def plot_pareto(file: Path, results: pd.DataFrame, best: pd.DataFrame, metric: str) -> None:
    """Draw distance against steps: all trials, the best, what fine-tuning started from."""
    done = results[results["state"] == "done"]
    figure, axis = plt.subplots(figsize=(6.4, 4.4))
    before = best.dropna(subset="initial")
    if len(before):
        own = "not fine-tuned"
        axis.plot(before["num_steps"], before["initial"], "s--", color=ORANGE, label=own)
    axis.plot(done["num_steps"], done["distance"], ".", color=GREY, label="trials")
    axis.plot(best["num_steps"], best["distance"], "-", color=BLUE, label="best")
    front = best[best["pareto"]]
    axis.plot(front["num_steps"], front["distance"], "o", color=BLUE, label="Pareto front")
    first = done.iloc[0]
    axis.axhline(first["full_step"], color="black", lw=1.0, label="full steps")
    axis.axhline(first["noise_floor"], color="black", lw=1.0, ls=":", label="noise floor")
    if (done[["distance", "noise_floor"]] > 0).all(axis=None):
        axis.set_yscale("log")
    axis.set_xticks(sorted(done["num_steps"].unique()))
    axis.set_xlabel("denoising steps (NFE)")
    axis.set_ylabel(metric.replace("_", " "))
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def plot_curves(file: Path, records: list[Record], results: pd.DataFrame) -> None:
    """Draw validation distance against iterations, a panel for each number of steps."""
    steps = sorted(results["num_steps"].unique()) if len(results) else []
    panels = max(len(steps), 1)
    figure, axes = plt.subplots(1, panels, figsize=(3.6 * panels, 3.2), squeeze=False)
    num_steps = dict(zip(results.get("trial", []), results.get("num_steps", []), strict=True))
    for axis, panel in zip(axes[0], steps, strict=False):
        for record in records:
            if num_steps[record.index] == panel and record.curve:
                iterations, distances = zip(*record.curve, strict=True)
                axis.plot(iterations, distances, color=COLOURS[record.state], lw=0.9, alpha=0.8)
        axis.set_title(f"{panel} steps", fontsize=10)
        axis.set_xlabel("iteration", fontsize=8)
        axis.set_yscale("log")
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("validation distance", fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def plot_parallel(file: Path, results: pd.DataFrame, search: Search) -> None:
    """Draw a line for each finished trial through its values to its distance, best dark."""
    done = results[results["state"] == "done"].sort_values("distance", ascending=False)
    keys = [key for key in search.space.distributions if key != STEPS]
    if "num_steps" in done and done["num_steps"].nunique() > 1:
        keys = ["num_steps", *keys]
    columns = [*keys, "distance"]
    figure, axis = plt.subplots(figsize=(2.0 * len(columns) + 1.0, 3.8))
    heights = np.stack([_heights(done[c], _is_log(c, search)) for c in columns], axis=1)
    shades = plt.get_cmap("viridis_r")(np.linspace(0.0, 1.0, len(done)))
    for line, shade in zip(heights, shades, strict=True):
        axis.plot(range(len(columns)), line, color=shade, lw=1.4, alpha=0.85)
    for position, column in enumerate(columns):
        _label(axis, position, done[column])
    axis.set_xticks(range(len(columns)), [c.replace(".", ".\n") for c in columns], fontsize=8)
    axis.set_yticks([])
    axis.set_ylim(-0.12, 1.12)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _is_log(column: str, search: Search) -> bool:
    distribution = search.space.distributions.get(column)
    return column == "distance" or (distribution is not None and distribution.kind == "loguniform")


def _heights(values: pd.Series[Any], log: bool) -> np.ndarray:
    """Place a column's values between 0 and 1; text in alphabetical order."""
    if not pd.api.types.is_numeric_dtype(values):
        values = values.astype(str).rank(method="dense")
    numbers = values.to_numpy(dtype=float)
    if log and (numbers > 0).all():
        numbers = np.log(numbers)
    low, high = numbers.min(), numbers.max()
    return np.full(len(numbers), 0.5) if high == low else (numbers - low) / (high - low)


def _label(axis: Axes, position: int, values: pd.Series[Any]) -> None:
    """Write a column's ends beside its axis."""
    axis.axvline(position, color="black", lw=0.6)
    if pd.api.types.is_numeric_dtype(values):
        low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    else:
        low, high = str(min(values.astype(str))), str(max(values.astype(str)))
    axis.text(position, -0.03, low, ha="center", va="top", fontsize=7)
    axis.text(position, 1.03, high, ha="center", va="bottom", fontsize=7)
