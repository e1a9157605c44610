"""The digits as a user trains them: distance by steps, before, after and with all steps.

    python -m benchmarks.digits               # seeds 0, 1, 2 at T = 10 and T = 4
    python -m benchmarks.digits --seeds 10    # another seed
    python -m benchmarks.digits --side-by-side 2    # two runs at a time, on a core each
    python -m benchmarks.digits --cold        # only the plain command, once, from an empty cache

Every sampler draws 5,000 images; the distance's expectation does not depend on how many, so that
the floor stands beside them though there are 1,079 training images. Prints a table with standard
errors, writes ``benchmarks/results/digits.json`` after every run, and puts the pictures of the
first seed into ``docs/images``. ``--cold`` writes ``digits_cold.json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, machine
from benchmarks.watch import watched_train

NUM_SAMPLES = 5000
DISTANCE = "frechet_inf"
PICTURES = Path(__file__).parent.parent / "docs" / "images"


def run_once(
    num_steps: int, seed: int, *, num_samples: int, keep_pictures: bool, cache: Path | None = None
) -> dict[str, Any]:
    """Run the command; return what is worth keeping of its summary."""
    settings = [
        f"sampler.num_steps={num_steps}",
        f"seed={seed}",
        f"metrics.num_samples={num_samples}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        memory = watched_train("digits", settings, out, cache=cache)
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
        if keep_pictures:
            for name in ("samples", "path"):
                target = PICTURES / f"digits_{name}_T{num_steps}.png"
                shutil.copy(out / "plots" / f"{name}.png", target)
    return {
        "num_steps": num_steps,
        "seed": seed,
        "before": summary["before"],
        "final": summary["final"],
        "full_step": summary["full_step"],
        "protocol": summary["protocol"],
        "seconds": summary["wall_seconds"],
        "megabytes": round(memory.driver),
    }


def told(metrics: dict[str, float], name: str = DISTANCE) -> str:
    """A metric and its standard error."""
    return f"{metrics[name]:.3f} ± {metrics[f'{name}_se']:.3f}"


def table(runs: list[dict[str, Any]]) -> str:
    """Lay the runs out, as Markdown; the differences' errors are those of the pair."""
    lines = [
        "| steps | seed | before | after | less before | less 1000 steps | nearest training "
        "| fine-tuning s | MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in sorted(runs, key=lambda run: (-run["num_steps"], run["seed"])):
        final = run["final"]
        lines.append(
            f"| {run['num_steps']} | {run['seed']} | {told(run['before'])} | {told(final)} "
            f"| {told(final, f'{DISTANCE}_less_before')} "
            f"| {told(final, f'{DISTANCE}_less_full_step')} | {final['nearest_training']:.2f} "
            f"| {run['seconds']['fine-tuning']:.0f} | {run['megabytes']} |"
        )
    full = runs[0]["full_step"]
    lines.append(f"\n1000 steps: {told(full)}; training images: {told(full['noise_floors'])}")
    return "\n".join(lines)


def measure_cold() -> dict[str, Any]:
    """Run `sft-rl train digits` from an empty cache, without the pictures."""
    with tempfile.TemporaryDirectory() as cache:
        return run_once(10, 0, num_samples=1000, keep_pictures=False, cache=Path(cache))


def main() -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--side-by-side", type=int, default=1)
    parser.add_argument("--cold", action="store_true")
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if args.cold:
        cold = {"machine": machine(), **measure_cold()}
        (RESULTS / "digits_cold.json").write_text(json.dumps(cold, indent=1) + "\n")
        print(json.dumps(cold["seconds"], indent=1))
        return
    runs: list[dict[str, Any]] = []

    def run_job(job: tuple[int, int]) -> dict[str, Any]:
        seed, num_steps = job
        pictures = seed == args.seeds[0]
        return run_once(num_steps, seed, num_samples=NUM_SAMPLES, keep_pictures=pictures)

    with ThreadPoolExecutor(args.side_by_side) as pool:
        for run in pool.map(run_job, product(args.seeds, args.steps)):
            runs.append(run)
            content = {"machine": machine(), "side_by_side": args.side_by_side, "runs": runs}
            (RESULTS / "digits.json").write_text(json.dumps(content, indent=1) + "\n")
            print(f"{run}\n", file=sys.stderr)
    print(table(runs))


if __name__ == "__main__":
    main()
