"""What a reward moves and what it costs, with the critic beside it and without.

    python -m benchmarks.rewards                  # weights 0 to 2, seed 0
    python -m benchmarks.rewards --weights 0 2 --seeds 0 1 2

Two moons at T = 4, and a preference for the right half: 1 for points whose first coordinate is
above the data's mean, else 0. The critic estimates the logarithm of the density ratio (plain NCE
with a light penalty), so the best sampler is the data tilted by exp(weight * reward). Prints the
table of docs/rewards.md, of the first seed draws docs/images/rewards.png, and writes
``benchmarks/results/rewards.json``. Precision and recall are of held-out data.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sft_rl
from benchmarks.machine import RESULTS, machine

WEIGHTS = (0.0, 1.0, 2.0)
RATIO = ("critic.objective=n2ce", "critic.noise_ratio=1", "critic.penalty_weight=0.003")
ALONE = "alone"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "rewards.png"


def right_half(x: Tensor) -> Tensor:
    """1 on the right of the data's mean, 0 on the left; no gradient."""
    return (x[:, 0] > 0).float()


def run_once(weight: float | None, seed: int, settings: list[str]) -> tuple[dict[str, Any], Any]:
    """Fine-tune with a weight beside the critic, or alone (None); return a row and points."""
    reward = {"use": right_half, "weight": 1.0 if weight is None else weight, "look_ahead": True}
    terms = [reward] if weight is None else ["critic", reward]
    config = sft_rl.load_config(
        "two_moons",
        ["sampler.num_steps=4", f"seed={seed}", "rollout.num_workers=0", *RATIO, *settings],
    )
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        result = sft_rl.fine_tune(config, reward=terms, out=Path(folder) / "run", observer=None)
    points = result.sampler.sample(5000, seed=0)
    final = result.metrics["final"]
    names = ("precision", "recall", "two_sample", "term_right_half", "term_right_half_se")
    row = {"weight": ALONE if weight is None else weight, "seed": seed}
    row |= {name: final[name] for name in names}
    return row | {"cpu_seconds": time.process_time() - begun}, points


def draw(rows: list[dict[str, Any]], points: dict[str, np.ndarray]) -> None:
    """Draw the curve of weight against both, and samples of some of the runs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    beside = [row for row in rows if row["weight"] != ALONE]
    figure, axes = plt.subplots(1, 1 + len(points), figsize=(3.2 * (1 + len(points)), 3.0))
    weights = range(len(beside))
    for name, label in (("term_right_half", "share on the right"), ("precision", "precision")):
        axes[0].plot(weights, [row[name] for row in beside], "o-", ms=4, label=label)
    axes[0].plot(weights, [row["recall"] for row in beside], "o-", ms=4, label="recall")
    axes[0].set_xticks(list(weights), [f"{row['weight']:g}" for row in beside])
    axes[0].set(xlabel="weight beside the critic", ylim=(0, 1.02))
    axes[0].grid(alpha=0.25)
    axes[0].legend(fontsize=8)
    for axis, (title, some) in zip(axes[1:], points.items(), strict=True):
        axis.scatter(some[:, 0], some[:, 1], s=1, alpha=0.4, lw=0)
        axis.set(title=title, xlim=(-1.6, 2.6), ylim=(-1.1, 1.6), aspect="equal")
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=90)


def main() -> None:
    """Measure, print the table, keep the numbers and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=float, nargs="+", default=list(WEIGHTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("settings", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| weight | seed | on the right | precision | recall | two-sample |")
    print("|---|---|---|---|---|---|")
    rows, points = [], {}
    for seed, weight in product(args.seeds, [*args.weights, None]):
        row, drawn = run_once(weight, seed, args.settings)
        rows.append(row)
        if seed == args.seeds[0]:
            points["no critic" if weight is None else f"weight {weight:g}"] = drawn
        numbers = (row["term_right_half"], row["precision"], row["recall"], row["two_sample"])
        cells = " | ".join(f"{number:.3f}" for number in numbers)
        print(f"| {row['weight']} | {seed} | {cells} |", flush=True)
    draw([row for row in rows if row["seed"] == args.seeds[0]], points)
    content = json.dumps({"machine": machine(), "rows": rows}, indent=2)
    (RESULTS / "rewards.json").write_text(content + "\n")


if __name__ == "__main__":
    main()
