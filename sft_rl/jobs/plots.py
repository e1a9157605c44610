"""A run's pictures: samples before and after, the denoising path, the learning curves."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sft_rl.config import DISTANCES
from sft_rl.data import Units
from sft_rl.data.pictures import sample_grid, tile, to_rgb

Array = np.ndarray

BLUE, ORANGE, GREY, GREEN = "#2a6f97", "#d1495b", "#6b7280", "#588157"
COLOURS = (GREY, ORANGE, BLUE, GREEN)
NUM_SHOWN = 10_000
NUM_PARTS = 8
"""How many times the enlarged part's side fits into the whole."""
VIEW = (0.001, 0.999)
"""Quantiles of the points between which a picture shows them."""
NUM_STRIPS = 8
MOST_OF_A_PROMPT = 60
"""Characters that a picture shows of one."""


@dataclass(frozen=True)
class Samples:
    """What a run's pictures show, all in the data's units; the same noise made the samples.

    Attributes:
        real: Held-out real samples, shape (N, *shape).
        before: Samples of the pretrained few-step sampler.
        after: Samples of the fine-tuned one.
        path: Latents of some samples step by step, shape (T+1, num, *shape).
        full_step: Samples of the full-step sampler, or None.
        prompts: What the samples were asked to show, of a text-to-image pipeline.
    """

    real: Array
    before: Array
    after: Array
    path: Array
    full_step: Array | None = None
    prompts: tuple[str, ...] = ()

    def groups(self) -> dict[str, Array]:
        """The samples by their titles."""
        num_steps = len(self.path) - 1
        groups = {
            "data": self.real,
            f"pretrained, {num_steps} steps": self.before,
            f"fine-tuned, {num_steps} steps": self.after,
        }
        return groups if self.full_step is None else {**groups, "all steps": self.full_step}


def write_plots(run: Path, samples: Samples, units: Units) -> None:
    """Draw all pictures of a run into its ``plots`` folder.

    Args:
        run: The run's folder; ``metrics.csv`` is read from it.
        samples: What to show.
        units: Knows what the samples are.
    """
    plots = run / "plots"
    plots.mkdir(exist_ok=True)
    if (pixel_max := units.samples.pixel_max) is not None:
        plot_images(plots / "samples.png", samples.groups(), pixel_max)
        plot_strips(plots / "path.png", samples.path, pixel_max)
        if samples.prompts:
            plot_prompts(plots / "prompts.png", samples, pixel_max)
    else:
        plot_samples(plots / "samples.png", samples.groups())
        plot_path(plots / "path.png", samples.path, samples.after)
    plot_curves(plots / "curves.png", pd.read_csv(run / "metrics.csv"))


def plot_images(file: Path, groups: dict[str, Array], pixel_max: int) -> None:
    """Draw the first images of each group as a grid, groups side by side."""
    figure, axes = plt.subplots(1, len(groups), figsize=(3.2 * len(groups), 3.5))
    for axis, (title, images) in zip(np.atleast_1d(axes), groups.items(), strict=True):
        _picture(axis, sample_grid(images, pixel_max))
        axis.set_title(title, fontsize=11)
    _save(figure, file)


def plot_strips(file: Path, path: Array, pixel_max: int) -> None:
    """Draw how images emerge: one a row, from noise to the last step."""
    shown = path[:, :NUM_STRIPS]
    num_steps, num = len(shown) - 1, shown.shape[1]
    rows = to_rgb(shown.swapaxes(0, 1).reshape(-1, *shown.shape[2:]), 0, pixel_max)
    figure, axis = plt.subplots(figsize=(0.7 * (num_steps + 1), 0.7 * num + 0.4))
    _picture(axis, tile(rows, columns=num_steps + 1))
    axis.set_title(f"from noise through {num_steps} steps", fontsize=10)
    _save(figure, file)


def plot_prompts(file: Path, samples: Samples, pixel_max: int) -> None:
    """Draw the same prompt and noise by each sampler: a row a prompt, its text on the left."""
    _, *groups = samples.groups().items()  # the data have other prompts
    shown = samples.prompts[:NUM_STRIPS]
    pictures = np.stack([images[: len(shown)] for _, images in groups], axis=1)
    rows = to_rgb(pictures.reshape(-1, *pictures.shape[2:]), 0, pixel_max)
    figure, axis = plt.subplots(figsize=(1.1 * len(groups) + 3.0, 1.1 * len(shown) + 0.4))
    grid = tile(rows, columns=len(groups))
    _picture(axis, grid)
    height, width = grid.shape[0] / len(shown), grid.shape[1] / len(groups)
    for row, prompt in enumerate(shown):
        text = textwrap.shorten(prompt, MOST_OF_A_PROMPT, placeholder="…")
        axis.text(-0.1 * width, (row + 0.5) * height, text, ha="right", va="center", fontsize=8)
    for column, (title, _) in enumerate(groups):
        place = (column + 0.5) * width
        axis.text(place, -0.1 * height, title.replace(", ", "\n"), ha="center", fontsize=7)
    _save(figure, file)


def plot_samples(file: Path, groups: dict[str, Array]) -> None:
    """Draw groups of samples side by side on the same axes; below, a part of each enlarged.

    As many points in every panel, so that what looks denser is denser.
    """
    num = min(NUM_SHOWN, *(len(samples) for samples in groups.values()))
    shown = {title: samples[:num] for title, samples in groups.items()}
    real = next(iter(shown.values()))
    heights = [1.0]
    if real.shape[1] > 1:  # a histogram has nothing to enlarge
        width, height = np.ptp(np.quantile(real[:, :2], VIEW, axis=0), axis=0)
        heights = [float(np.clip(height / width, 0.3, 1.0)), 1.0]
    figure, axes = plt.subplots(
        len(heights),
        len(shown),
        figsize=(3.6 * len(shown), 3.7 * sum(heights)),
        height_ratios=heights,
        sharex="row",
        sharey="row",
        squeeze=False,
    )
    for column, (title, samples) in enumerate(shown.items()):
        for axis, size in zip(axes[:, column], (2.0, 5.0), strict=False):
            _scatter(axis, samples, COLOURS[column % len(COLOURS)], size=size)
            axis.tick_params(labelsize=9, labelbottom=True)
            axis.locator_params(nbins=4)
        axes[0, column].set_title(title, fontsize=11)
    _limit(axes[0, 0], real)
    if len(heights) == 2:
        low, side = _densest_part(real)
        for axis in axes[0]:
            axis.add_patch(Rectangle(tuple(low), side, side, fill=False, lw=1.0, zorder=3))
        axes[1, 0].set_xlim(low[0], low[0] + side)
        axes[1, 0].set_ylim(low[1], low[1] + side)
    _save(figure, file)


def _densest_part(points: Array) -> tuple[Array, float]:
    """Lower left corner and side of a square around where the most points (N, dim) are."""
    flat = points[:, :2]
    low, high = np.quantile(flat, VIEW, axis=0)
    side = float((high - low).max() / NUM_PARTS)
    _, cells, counts = np.unique(
        (flat - low) // side, axis=0, return_inverse=True, return_counts=True
    )
    return flat[cells.ravel() == counts.argmax()].mean(axis=0) - side / 2, side


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
        axis.locator_params(nbins=4)
        axis.tick_params(labelsize=8)
    _limit(np.atleast_1d(axes)[0], flat)
    _save(figure, file)


def plot_curves(file: Path, metrics: pd.DataFrame) -> None:
    """Draw how distance, critic gap, reward and policy ratio went over the iterations."""
    panels = {
        **DISTANCES,
        "precision": "precision",
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
        if name in DISTANCES and 0.0 < 2.0 * points[name].min() < points[name].max():
            axis.set_yscale("log")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("iteration", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
    _save(figure, file)


def _picture(axis: Axes, image: Array) -> None:
    axis.imshow(image, interpolation="nearest")
    axis.axis("off")


def _scatter(axis: Axes, points: Array, colour: str, *, size: float = 2.0) -> None:
    flat = points.reshape(len(points), -1)
    if flat.shape[1] == 1:
        axis.hist(flat[:, 0], bins=80, density=True, color=colour)
        return
    axis.scatter(flat[:, 0], flat[:, 1], s=size, color=colour, alpha=0.5, lw=0)
    axis.set_aspect("equal")


def _limit(axis: Axes, points: Array) -> None:
    """Show the middle of the points, so that one stray does not shrink the picture."""
    flat = points.reshape(-1, points.shape[-1])
    if flat.shape[1] < 2:
        return
    low, high = np.quantile(flat[:, :2], VIEW, axis=0)
    margin = 0.15 * (high - low)
    axis.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axis.set_ylim(low[1] - margin[1], high[1] + margin[1])


def _save(figure: Figure, file: Path) -> None:
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
