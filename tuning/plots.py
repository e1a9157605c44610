"""Pictures of a search."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, ScalarFormatter

from tuning.distribution import LOG
from tuning.final import Result
from tuning.objective import Objective
from tuning.ranking import Configuration, Estimate, best_by_steps, pareto_front
from tuning.search import STEPS, Search
from tuning.sensitivity import Effect, Sensitivity

BLUE, ORANGE, GREY, GREEN = "#2a6f97", "#d1495b", "#8d99ae", "#588157"
NUM_NAMED = 5
"""Curves of a panel that have a colour and a name: the best; the others are grey."""
ASIDE = 1.03
"""Factor by which what has the same number of steps stands apart."""


def plot_pareto(
    file: Path,
    search: Search,
    tried: list[Configuration],
    final: list[Result],
    full_step: dict[str, Any],
) -> None:
    """Draw distance against steps: the search, and what was trained again, on other data."""
    final = [result for result in final if math.isfinite(result.held_out.mean)]
    panels = 2 if final else 1
    figure, axes = plt.subplots(1, panels, figsize=(5.4 * panels + 1.0, 4.4), squeeze=False)
    _draw_search(axes[0][0], [one for one in tried if one.state == "done"])
    if final:
        _draw_final(axes[0][1], final, full_step, search.objective)
    for axis in axes[0]:
        _scale(axis, [value for line in axis.lines for value in np.ravel(line.get_ydata())])
        axis.set_xscale("log")
        steps = sorted({one.num_steps for one in tried})
        axis.set_xticks(steps, [str(number) for number in steps])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel("denoising steps (NFE)")
        axis.set_ylabel(search.objective.words)
        axis.legend(fontsize=8)
    _save(figure, file)


def _draw_search(axis: Axes, done: list[Configuration]) -> None:
    """Draw all configurations, the best of each number of steps, and the preset's own."""
    best = best_by_steps(done)
    front = pareto_front([(steps, one.validation.mean) for steps, one in best.items()])
    own = [one for one in done if one.is_own]
    _bars(axis, [(one.num_steps, one.validation) for one in done], ".", GREY, "tried")
    _bars(axis, [(steps, one.validation) for steps, one in best.items()], "-", BLUE, "best")
    on_front = [pair for pair, is_on in zip(best.items(), front, strict=True) if is_on]
    _bars(axis, [(n, one.validation) for n, one in on_front], "o", BLUE, "Pareto front")
    aside = [(ASIDE * one.num_steps, one.validation) for one in own]
    _bars(axis, aside, "x", GREEN, "the preset's own")
    axis.set_title("the search: validation ± standard error", fontsize=10)


def _draw_final(
    axis: Axes, final: list[Result], full_step: dict[str, Any], objective: Objective
) -> None:
    """Draw the winners and the preset's own beside what they started from."""
    winners = [result for result in final if result.contender.is_winner]
    own = [result for result in final if result.contender.is_own]
    before = [(r.contender.num_steps, r.before) for r in winners]
    _bars(axis, before, "s--", ORANGE, "not fine-tuned")
    _bars(axis, [(r.contender.num_steps, r.held_out) for r in winners], "o-", BLUE, "winner")
    shown = [(ASIDE * r.contender.num_steps, r.held_out) for r in own]
    _bars(axis, shown, "x", GREEN, "the preset's own")
    if "nfe" in full_step:
        axis.axhline(
            objective.of(full_step), color="black", lw=1.0, label=f"{full_step['nfe']} steps"
        )
    floor = full_step["noise_floor"] if objective.is_leading else None
    if floor is not None:  # too few real images to say
        axis.axhline(floor, color="black", lw=1.0, ls=":", label="noise floor")
    axis.set_title("trained again: held-out data ± standard error", fontsize=10)


def _bars(
    axis: Axes, points: Sequence[tuple[float, Estimate]], style: str, colour: Any, label: str
) -> None:
    """Draw means and their standard errors, where they are known."""
    if points:
        steps = [steps for steps, _ in points]
        means = [estimate.mean for _, estimate in points]
        errors = [estimate.error for _, estimate in points]
        axis.errorbar(steps, means, errors, fmt=style, color=colour, label=label, ms=5, capsize=2)


def plot_curves(file: Path, search: Search, tried: list[Configuration]) -> None:
    """Draw validation distance against iterations, a panel for each number of steps."""
    steps = sorted({one.num_steps for one in tried})
    figure, axes = plt.subplots(
        1, len(steps), figsize=(3.6 * len(steps) + 0.6, 3.4), squeeze=False, sharey=True
    )
    colours = plt.get_cmap("tab10")
    for axis, panel in zip(axes[0], steps, strict=True):
        of_it = [
            one for one in tried if one.num_steps == panel and math.isfinite(one.validation.mean)
        ]
        of_it.sort(key=lambda one: (one.state != "done", one.validation.mean))
        for rank, one in reversed(list(enumerate(of_it))):
            named = rank < NUM_NAMED
            state = "" if one.state == "done" else f", {one.state}"
            _draw_curve(
                axis,
                one,
                colour=colours(rank) if named else GREY,
                label=f"{one.label}{state}" if named else None,
            )
        axis.set_title(f"{panel} steps", fontsize=10)
        axis.set_xlabel("iteration", fontsize=8)
        handles, labels = axis.get_legend_handles_labels()
        axis.legend(handles[::-1], labels[::-1], fontsize=7)
        _scale(axis, [d for one in tried for r in one.trials for _, d in r.curve])
    axes[0][0].set_ylabel(f"{search.objective.words}\n(validation)", fontsize=8)
    _save(figure, file)


def _draw_curve(axis: Axes, one: Configuration, *, colour: Any, label: str | None) -> None:
    """Draw the mean over a configuration's seeds, and its standard error as a band."""
    seeds = [dict(record.curve) for record in one.trials]
    iterations = sorted(set.intersection(*(set(curve) for curve in seeds)))
    estimates = [Estimate.of([curve[i] for curve in seeds]) for i in iterations]
    means = np.array([estimate.mean for estimate in estimates])
    errors = np.array([estimate.error for estimate in estimates])
    axis.plot(iterations, means, color=colour, lw=1.2 if label else 0.8, label=label)
    if len(seeds) > 1:
        axis.fill_between(iterations, means - errors, means + errors, color=colour, alpha=0.2, lw=0)


def plot_parallel(file: Path, search: Search, tried: list[Configuration]) -> None:
    """Draw a line for each configuration through its values to its distance, best dark."""
    done = [one for one in tried if one.state == "done"]
    done.sort(key=lambda one: -one.validation.mean)
    columns: dict[str, list[Any]] = {
        key: [one.values.get(key) for one in done]
        for key in search.space.distributions
        if any(key in one.values for one in done)
    }
    columns["validation"] = [one.validation.mean for one in done]
    figure, axis = plt.subplots(figsize=(2.0 * len(columns) + 1.0, 3.8))
    logs = {k for k, d in search.space.distributions.items() if d.kind in LOG}
    places = [_heights(v, log=key in logs | {STEPS, "validation"}) for key, v in columns.items()]
    shades = plt.get_cmap("viridis_r")(np.linspace(0.0, 1.0, len(done)))
    for line, shade in zip(np.stack(places, axis=1), shades, strict=True):
        axis.plot(range(len(columns)), line, color=shade, lw=1.4, alpha=0.85)
    for position, (values, heights) in enumerate(zip(columns.values(), places, strict=True)):
        _label(axis, position, values, heights)
    axis.set_xticks(range(len(columns)), [c.replace(".", ".\n") for c in columns], fontsize=8)
    axis.set_yticks([])
    axis.set_ylim(-0.12, 1.12)
    _save(figure, file)


def plot_sensitivity(
    file: Path, search: Search, tried: list[Configuration], found: Sensitivity
) -> None:
    """Draw the effect of each key, a line for each number of steps, over what was tried."""
    keys = list(dict.fromkeys(effect.key for effect in found.effects))
    figure, axes = plt.subplots(
        1, len(keys), figsize=(4.0 * len(keys) + 0.6, 3.8), squeeze=False, sharey=True
    )
    colours = _colours(tried)
    for axis, key in zip(axes[0], keys, strict=True):
        for effect in (effect for effect in found.effects if effect.key == key):
            _draw_effect(axis, effect, search, tried, colours[effect.num_steps])
        axis.set_xlabel(key)
        _scale(axis, [one.validation.mean for one in tried if one.state == "done"])
    axes[0][0].legend(fontsize=8)
    axes[0][0].set_ylabel(f"{search.objective.words}\n(validation)", fontsize=8)
    figure.suptitle("others averaged; bands: two standard errors; dotted: preset", fontsize=9)
    _save(figure, file)


def _draw_effect(
    axis: Axes, effect: Effect, search: Search, tried: list[Configuration], colour: Any
) -> None:
    """Draw one line with its band, the tried points, and the preset's own value."""
    points = [
        (one.values[effect.key], one.validation.mean)
        for one in tried
        if one.state == "done" and one.num_steps == effect.num_steps and effect.key in one.values
    ]
    label, own = f"{effect.num_steps} steps", search.own(effect.num_steps).get(effect.key)
    if not effect.are_numbers:
        errors = np.stack([effect.means - effect.low, effect.high - effect.means])
        words = [str(value) for value in effect.values]
        axis.errorbar(words, effect.means, errors, fmt="o", color=colour, label=label, capsize=3)
        axis.plot([str(x) for x, _ in points], [y for _, y in points], ".", color=colour, alpha=0.4)
        return
    if effect.log:
        _log_x(axis)
    axis.plot(effect.values, effect.means, color=colour, lw=1.6, label=label)
    axis.fill_between(effect.values, effect.low, effect.high, color=colour, alpha=0.18, lw=0)
    axis.plot([x for x, _ in points], [y for _, y in points], ".", color=colour, alpha=0.5, ms=4)
    if own is not None and effect.values[0] <= own <= effect.values[-1]:
        axis.axvline(own, color=colour, lw=1.0, ls=":")


def plot_cost(
    file: Path, search: Search, tried: list[Configuration], seconds: dict[int, tuple[float, float]]
) -> None:
    """Draw distance against what training and what sampling costs.

    Args:
        file: Picture.
        search: The search.
        tried: Its configurations.
        seconds: By configuration, of training it and of drawing 1,000 samples.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10.0, 4.0), sharey=True)
    best = {one.number for one in best_by_steps(tried).values()}
    shown = [one for one in tried if one.number in seconds]
    for steps, colour in _colours(shown).items():
        of_it = [one for one in shown if one.num_steps == steps]
        for axis, which in zip(axes, (0, 1), strict=True):
            points = [(seconds[one.number][which], one.validation) for one in of_it]
            _bars(axis, points, ".", colour, f"{steps} steps")
            chosen = [p for p, one in zip(points, of_it, strict=True) if one.number in best]
            _bars(axis, chosen, "*", colour, "")
    for axis, what in zip(axes, ("training a configuration once", "1,000 samples"), strict=True):
        _log_x(axis)
        axis.set_xlabel(f"seconds, {what}")
        _scale(axis, [one.validation.mean for one in shown])
    axes[0].legend(fontsize=8)
    axes[0].set_ylabel(f"{search.objective.words}\n(validation)", fontsize=8)
    axes[0].set_title("stars: the best of each number of steps", fontsize=9)
    _save(figure, file)


def _colours(tried: Iterable[Configuration]) -> dict[int, Any]:
    """A colour for each number of steps, darker for more."""
    steps = sorted({one.num_steps for one in tried})
    shades = plt.get_cmap("viridis_r")(np.linspace(0.15, 0.95, len(steps)))
    return dict(zip(steps, shades, strict=True))


def _heights(values: list[Any], *, log: bool) -> np.ndarray:
    """Place a column's values between 0 and 1; what is no number in alphabetical order.

    A key that was not searched beside others, None, has no place: NaN.
    """
    known = [value for value in values if value is not None]
    if not _are_numbers(known):
        words = sorted({str(value) for value in known})
        values, log = [v if v is None else words.index(str(v)) for v in values], False
    numbers = np.array(values, dtype=float)
    if log and np.nanmin(numbers) > 0:
        numbers = np.log(numbers)
    low, high = np.nanmin(numbers), np.nanmax(numbers)
    return numbers * 0.0 + 0.5 if high == low else (numbers - low) / (high - low)


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _label(axis: Axes, position: int, values: list[Any], heights: np.ndarray) -> None:
    """Write beside a column's axis what its lines meet there, or its ends if that is much."""
    axis.axvline(position, color="black", lw=0.6)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}
    places = {v: h for v, h in zip(values, heights, strict=True) if v is not None}
    if _are_numbers(list(places)) and len(places) > NUM_NAMED:
        places = {min(places): -0.07, max(places): 1.07}
    for value, height in places.items():
        text = f"{value:.3g}" if _are_numbers([value]) else str(value)
        axis.annotate(
            text, (position, height), (4, 0), textcoords="offset points", fontsize=7,
            va="center", bbox=box,
        )  # fmt: skip


def _scale(axis: Axes, values: list[float]) -> None:
    """Take a log axis, with plain numbers, where values span more than a factor of 2."""
    axis.grid(alpha=0.25)
    values = [value for value in values if math.isfinite(value)]  # ends of unknown errors are not
    if 0.0 < 2.0 * min(values) < max(values):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.yaxis.set_minor_locator(NullLocator())


def _log_x(axis: Axes) -> None:
    """Take a log axis for what is drawn along, with few and plain numbers."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def _save(figure: Figure, file: Path) -> None:
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)
