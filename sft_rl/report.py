"""A run's pictures: samples before and after, the denoising path, the learning curves."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Array = np.ndarray

BLUE, ORANGE, GREY = "#2a6f97", "#d1495b", "#8d99ae"
NUM_SHOWN = 4000


def write_plots(run: Path, *, real: Array, before: Array, after: Array, path: Array) -> None:
    """Draw all pictures of a run into its ``plots`` folder.

    Args:
        run: The run's folder; ``metrics.csv`` is read from it.
        real: Held-out real samples, data units, shape (N, dim).
        before: Samples of the pretrained few-step sampler.
        after: Samples of the fine-tuned one.
        path: Latents of some samples step by step, shape (T+1, num, dim).
    """
    plots = run / "plots"
    plots.mkdir(exist_ok=True)
    num_steps = len(path) - 1
    plot_samples(
        plots / "samples.png",
        {
            "data": real,
            f"pretrained, {num_steps} steps": before,
            f"fine-tuned, {num_steps} steps": after,
        },
    )
    plot_path(plots / "path.png", path, after)
    plot_curves(plots / "curves.png", pd.read_csv(run / "metrics.csv"))


def plot_samples(file: Path, groups: dict[str, Array]) -> None:
    """Draw groups of samples side by side on the same axes."""
    figure, axes = plt.subplots(
        1, len(groups), figsize=(3.6 * len(groups), 3.7), sharex=True, sharey=True
    )
    for axis, (title, samples), colour in zip(
        np.atleast_1d(axes), groups.items(), [GREY, ORANGE, BLUE], strict=False
    ):
        _scatter(axis, samples[:NUM_SHOWN], colour)
        axis.set_title(title, fontsize=11)
    _limit(np.atleast_1d(axes)[0], next(iter(groups.values())))
    _save(figure, file)


def plot_path(file: Path, path: Array, samples: Array) -> None:
    """Draw the latents after each step, with the way that some samples took."""
    num_steps = len(path) - 1
    shown = np.unique(np.linspace(0, num_steps, min(num_steps, 5) + 1).round().astype(int))
    figure, axes = plt.subplots(
        1, len(shown), figsize=(2.5 * len(shown), 2.8), sharex=True, sharey=True
    )
    flat = path.reshape(len(path), path.shape[1], -1)
    for axis, k in zip(np.atleast_1d(axes), shown, strict=True):
        _scatter(axis, samples[:NUM_SHOWN], "#e3e7ee")
        if flat.shape[2] > 1:
            axis.plot(flat[: k + 1, :, 0], flat[: k + 1, :, 1], color=BLUE, alpha=0.25, lw=0.7)
            axis.scatter(flat[k, :, 0], flat[k, :, 1], s=9, color=ORANGE, zorder=3, lw=0)
        axis.set_title("noise" if k == 0 else f"step {k}", fontsize=10)
    _limit(np.atleast_1d(axes)[0], flat)
    _save(figure, file)


def plot_curves(file: Path, metrics: pd.DataFrame) -> None:
    """Draw how distance, critic gap, reward and policy ratio went over the iterations."""
    panels = {
        "sliced_wasserstein": "sliced Wasserstein distance",
        "critic_gap": "critic gap  E_real[f] - E_gen[f]",
        "critic_input_grad_norm": "critic gradient norm",
        "policy_grad_norm": "policy gradient norm",
    }
    present = {k: v for k, v in panels.items() if k in metrics and metrics[k].notna().any()}
    figure, axes = plt.subplots(1, len(present), figsize=(3.4 * len(present), 2.9))
    for axis, (name, title) in zip(np.atleast_1d(axes), present.items(), strict=True):
        points = metrics[["iteration", name]].dropna()
        style = "o-" if len(points) < 50 else "-"
        axis.plot(points["iteration"], points[name], style, color=BLUE, lw=1.0, ms=3)
        if name == "sliced_wasserstein" and (points[name] > 0).all():
            axis.set_yscale("log")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("iteration", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
    _save(figure, file)


def _scatter(axis: Axes, points: Array, colour: str) -> None:
    flat = points.reshape(len(points), -1)
    if flat.shape[1] == 1:
        axis.hist(flat[:, 0], bins=80, density=True, color=colour)
        return
    axis.scatter(flat[:, 0], flat[:, 1], s=2, color=colour, alpha=0.5, lw=0)
    axis.set_aspect("equal")
    axis.set_xticks([])
    axis.set_yticks([])


def _limit(axis: Axes, points: Array) -> None:
    """Show the middle of the points, so that one stray does not shrink the picture."""
    flat = points.reshape(-1, points.shape[-1])
    if flat.shape[1] < 2:
        return
    low, high = np.quantile(flat[:, :2], [0.001, 0.999], axis=0)
    margin = 0.15 * (high - low)
    axis.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axis.set_ylim(low[1] - margin[1], high[1] + margin[1])


def _save(figure: Figure, file: Path) -> None:
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
