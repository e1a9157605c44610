"""The main job's settings on other points, as they are: two moons, and eight dimensions.

    python -m benchmarks.other_points              # seeds 0, 1, 2 at T = 10

Prints the table of docs/benchmarks.md and writes ``benchmarks/results/other_points.json``. Numbers
are of held-out data; those of real data at the same counts stand in brackets.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import RESULTS, machine
from benchmarks.main_job import COLUMNS, over_seeds
from benchmarks.watch import watched_train

NUM_POINTS = 60_000


def mixture_on_a_curve(num: int, seed: int) -> np.ndarray:
    """Twelve Gaussians on a closed curve in eight dimensions, of unlike weights, float32 (num, 8).

    The curve is (cos a, sin a, cos 2a, sin 2a, ...) with amplitudes 1 / k; each Gaussian has a std
    of 0.02, and their shares rise along the curve from 1 to 3.
    """
    rng = np.random.default_rng(seed)
    weights = np.linspace(1.0, 3.0, 12)
    angle = 2.0 * np.pi * rng.choice(12, size=num, p=weights / weights.sum()) / 12.0
    harmonics = np.arange(1, 5)
    turns = angle[:, None] * harmonics
    curve = np.stack([np.cos(turns), np.sin(turns)], axis=2) / harmonics[:, None]
    points = curve.reshape(num, 8) + rng.normal(0.0, 0.02, (num, 8))
    return np.asarray(points, dtype=np.float32)


def run_once(preset: str, settings: list[str]) -> dict[str, Any]:
    """Run the command; return its summary."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        watched_train(preset, settings, out)
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def main() -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    print("| data | " + " | ".join(COLUMNS) + " | seconds |\n|---|" + "---|" * 5)
    kept = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "points.npy"
        np.save(file, mixture_on_a_curve(NUM_POINTS, seed=0))
        for name, preset, settings in (
            ("two moons", "two_moons", []),
            ("a mixture on a curve, 8 dimensions", "swiss_roll", [f"data.path={file}"]),
        ):
            runs = [run_once(preset, [*settings, f"seed={seed}"]) for seed in args.seeds]
            floors = runs[0]["full_step"]["noise_floors"]
            cells = [
                f"{over_seeds([run['final'][column] for run in runs], 4)} ({floors[column]:.4f})"
                for column in COLUMNS
            ]
            seconds = " / ".join(f"{run['wall_seconds']['total']:.0f}" for run in runs)
            print(f"| {name} | {' | '.join(cells)} | {seconds} |", flush=True)
            kept[name] = runs
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": machine(), "runs": kept}
    (RESULTS / "other_points.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
