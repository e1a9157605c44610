"""What the metrics of points see, and what they say of the present samplers of the swiss roll.

    python -m benchmarks.yardsticks                          # the figure, and runs at T = 10, 4
    python -m benchmarks.yardsticks --runs runs/A runs/B     # of runs that are there
    python -m benchmarks.yardsticks --figure                 # the figure alone

Draws ``docs/images/yardsticks.png``, prints the tables of the docs and writes
``benchmarks/results/yardsticks.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import RESULTS, machine
from benchmarks.watch import watched_train
from sft_rl.config import DataConfig, MetricsConfig
from sft_rl.data import load_dataset
from sft_rl.diffusion.noise import NoiseSchedule
from sft_rl.diffusion.schedule import own_steps
from sft_rl.jobs.report import number
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.metrics.points import Points
from sft_rl.policy import DenoisingPolicy
from sft_rl.runs.folder import RunFolder
from sft_rl.runs.parts import full_step_network, networks_of
from sft_rl.seeding import generator
from sft_rl.types import Metrics

Array = np.ndarray
Damage = Callable[[Array, np.random.Generator], Array]

FIGURE = Path(__file__).parent.parent / "docs" / "images" / "yardsticks.png"
SIGMA = 0.05 / 20
"""Noise of the roll in its own units."""
COLUMNS = ("two_sample", "precision", "recall", "excess", "sliced_wasserstein")
FAR = (4, 10)
NUM_DRAWS = 4
NUM_JUDGED = 102_400


def spiral() -> tuple[Array, Array]:
    """The roll without noise: parameter t (N,) and points (N, 2), 0.1 sigma apart."""
    t = np.linspace(1.5 * np.pi, 4.5 * np.pi, 100_000)
    return t, np.stack([t * np.cos(t), t * np.sin(t)], axis=1) / 20.0


def from_spiral(points: Array) -> tuple[Array, Array]:
    """Distance of points to the roll without noise, in its sigma, and the nearest t."""
    from scipy.spatial import cKDTree

    t, line = spiral()
    distance, index = cKDTree(line).query(points)
    return distance / SIGMA, t[index]


def noise(strength: float) -> Damage:
    """Gaussian noise of some sigma."""
    return lambda points, rng: points + rng.normal(0.0, strength * SIGMA, points.shape)


def strays(share: float) -> Damage:
    """Some points in place of others, anywhere in the roll's box."""

    def damage(points: Array, rng: np.random.Generator) -> Array:
        low, high = points.min(axis=0), points.max(axis=0)
        anywhere = rng.uniform(low, high, points.shape)
        return np.where(rng.uniform(size=(len(points), 1)) < share, anywhere, points)

    return damage


def gap(share: float) -> Damage:
    """A part of the roll is missing; others take its place in number."""

    def damage(points: Array, rng: np.random.Generator) -> Array:
        t = from_spiral(points)[1] / np.pi
        kept = points[np.abs(t - 3.0) > 1.5 * share]  # t runs over 3 pi
        more = rng.choice(len(kept), len(points) - len(kept))
        fresh = kept[more] + rng.normal(0.0, 0.1 * SIGMA, (len(more), 2))
        return rng.permutation(np.concatenate([kept, fresh]))

    return damage


def shift(strength: float) -> Damage:
    """All points move to the right by some sigma."""
    return lambda points, rng: points + np.array([strength * SIGMA, 0.0])


DAMAGES: dict[str, tuple[Callable[[float], Damage], list[float]]] = {
    "noise, sigma": (noise, [0.5, 1.0, 2.0, 4.0]),
    "share of strays": (strays, [0.01, 0.03, 0.1]),
    "share of the roll missing": (gap, [0.02, 0.05, 0.1]),
    "shift, sigma": (shift, [0.5, 1.0, 2.0, 4.0]),
}


def reactions() -> list[dict[str, Any]]:
    """Measure damaged real points: mean and scatter of every metric over a few draws."""
    config = MetricsConfig(num_exact=10)  # the exact ones are not shown
    data = load_dataset(DataConfig())
    measure, rows = Points("two_sample", config, data), []
    cases = [(name, make, s) for name, (make, all_s) in DAMAGES.items() for s in all_s]
    for name, make, strength in [("nothing", noise, 0.0), *cases]:
        found: list[Metrics] = []
        for draw in range(NUM_DRAWS):
            rng = np.random.default_rng(draw)
            real = data.real(config.num_samples, config.seed, 2 * draw)
            points = data.real(config.num_excess, config.seed, 2 * draw + 1).astype(np.float64)
            found.append(measure.measured(real, make(strength)(points, rng)).numbers)
        row: dict[str, Any] = {"damage": name, "strength": strength}
        for metric in COLUMNS:
            values = [metrics[metric] for metrics in found]
            row[metric] = float(np.mean(values))
            row[f"{metric}_sd"] = float(np.std(values, ddof=1))
        rows.append(row)
    return rows


def draw_figure(rows: list[dict[str, Any]]) -> None:
    """A row of panels a metric, a column a kind of damage; the band is undamaged data."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(COLUMNS), len(DAMAGES), figsize=(10.5, 9.5), sharex="col", sharey="row"
    )
    real = rows[0]
    for i, metric in enumerate(COLUMNS):
        for axis, name in zip(axes[i], DAMAGES, strict=True):
            own = [row for row in rows if row["damage"] == name]
            middle, spread = real[metric], 2 * real[f"{metric}_sd"]
            axis.axhspan(middle - spread, middle + spread, color="#8d99ae", alpha=0.4, lw=0)
            axis.errorbar(
                [row["strength"] for row in own],
                [row[metric] for row in own],
                [2 * row[f"{metric}_sd"] for row in own],
                fmt="o-", ms=3, lw=1.0, capsize=2, color="#2a6f97",
            )  # fmt: skip
            axis.grid(alpha=0.25)
            axis.tick_params(labelsize=8)
            axis.set_xlim(left=0.0)
        axes[i, 0].set_ylabel(metric.replace("_", " "), fontsize=9)
    for axis, name in zip(axes[-1], DAMAGES, strict=True):
        axis.set_xlabel(name, fontsize=9)
    figure.tight_layout()
    figure.savefig(FIGURE, dpi=100)
    plt.close(figure)


def sharp(points: Array) -> Metrics:
    """How far points are from the roll without noise, in its sigma, with standard errors."""
    distance, _ = from_spiral(points)
    metrics = {"median": float(np.median(distance))}
    for bound in FAR:
        share = float(np.mean(distance > bound))
        error = float(np.sqrt(share * (1.0 - share) / len(points)))
        metrics |= {f"far_{bound}": share, f"far_{bound}_se": error}
    return metrics


def judge_run(folder: Path, *, num_full: int) -> dict[str, Metrics]:
    """All numbers of real points and of a run's samplers: full steps, before, after."""
    store = RunFolder.open(folder)
    config = store.config
    if config.data != DataConfig():
        raise SystemExit(f"{folder}: only the swiss roll's own noise is known here")
    data = load_dataset(config.data)
    protocol = config.metrics.model_copy(update={"num_excess": NUM_JUDGED})
    evaluator = Evaluator(data, protocol)
    network, _ = full_step_network(config, data)
    steps = own_steps(NoiseSchedule.from_config(config.noise))
    full = DenoisingPolicy(network, steps, shape=data.shape)
    before, (after, _) = networks_of(config, network).policy, store.result()
    num = config.sampler.num_steps
    judged = {
        "real": data.real(NUM_JUDGED, protocol.seed, 50),
        f"{full.num_steps} steps": data.units.to_data(
            full.sample(num_full, generator(protocol.seed, "evaluation"))
        ),
        f"T = {num}, before": evaluator.samples(before),
        f"T = {num}, after": evaluator.samples(after),
    }
    return {
        name: sharp(points) | evaluator.all_distances(points) for name, points in judged.items()
    }


def made_runs(folder: Path, num_steps: list[int]) -> list[Path]:
    """Run the main job at each number of steps."""
    for steps in num_steps:
        watched_train("swiss_roll", [f"sampler.num_steps={steps}"], folder / str(steps))
    return [folder / str(steps) for steps in num_steps]


def table(rows: dict[str, Metrics]) -> str:
    """The table of the README, in markdown."""
    heads = ["swiss roll", "median / sigma", *(f"> {bound} sigma, %" for bound in FAR), *COLUMNS]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, metrics in rows.items():
        far = [f"{100 * metrics[f'far_{b}']:.2f} ± {100 * metrics[f'far_{b}_se']:.2f}" for b in FAR]
        cells = [name, f"{metrics['median']:.2f}", *far, *(number(metrics, c) for c in COLUMNS)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, draw, print, keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", action="store_true", help="the figure alone")
    parser.add_argument("--runs", type=Path, nargs="+", help="runs of the swiss roll")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 4], help="of runs to make")
    parser.add_argument("--num-full", type=int, default=10_000, help="points of the full steps")
    args = parser.parse_args()
    file = RESULTS / "yardsticks.json"
    content = json.loads(file.read_text()) if file.exists() else {}
    if not args.runs:
        content["reactions"] = reactions()
        draw_figure(content["reactions"])
    if not args.figure:
        rows: dict[str, Metrics] = {}
        with tempfile.TemporaryDirectory() as scratch:
            for run in args.runs or made_runs(Path(scratch), args.steps):
                rows |= judge_run(run, num_full=args.num_full)
        print(table(rows))
        content["samplers"] = rows
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps({**content, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
