"""The main job as a user runs it: seconds, distance and memory of ``sft-rl train swiss_roll``.

    python -m benchmarks.main_job                  # seeds 0, 1, 2 at T = 10 and T = 4
    python -m benchmarks.main_job --cold           # and once from an empty cache

Prints the table of the README and writes ``benchmarks/results/main_job.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.machine import RESULTS, machine
from benchmarks.watch import watched_train


def run_once(settings: list[str], cache: Path | None) -> dict[str, Any]:
    """Run the command; return what is worth keeping of its summary, with the peaks of memory."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        memory = watched_train("swiss_roll", settings, out, cache=cache)
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    seconds = summary["wall_seconds"]
    after = ("fine-tuning", "last evaluation", "plots")
    return {
        "settings": settings,
        "cold": cache is not None,
        "seconds_to_first_iteration": seconds["total"] - sum(seconds[phase] for phase in after),
        "initial": summary["sliced_wasserstein_initial"],
        "final": summary["sliced_wasserstein_final"],
        "full_step": summary["sliced_wasserstein_full_step"],
        "noise_floor": summary["full_step"]["noise_floors"]["sliced_wasserstein"],
        "seconds": seconds,
        "driver_mb": round(memory.driver),
        "worker_mb": round(memory.worker),
    }


def main() -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cold", action="store_true", help="measure an empty cache, too")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    runs = []
    if args.cold:
        with tempfile.TemporaryDirectory() as cache:
            runs.append(run_once(["seed=0"], Path(cache)))
    run_once(["training.num_iterations=1"], None)  # fills the cache
    for steps in args.steps:
        runs += [
            run_once([f"sampler.num_steps={steps}", f"seed={seed}"], None) for seed in args.seeds
        ]
    print("| run | distance before | after, each seed | mean | seconds | to the first iteration "
          "| driver MB | worker MB |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        name = "from an empty cache" if run["cold"] else run["settings"][0]
        groups.setdefault(name, []).append(run)
    for name, group in groups.items():
        finals = [run["final"] for run in group]
        begins = " / ".join(f"{run['seconds_to_first_iteration']:.1f}" for run in group)
        print(
            f"| {name} | {group[0]['initial']:.4f} | {' / '.join(f'{f:.4f}' for f in finals)} "
            f"| {mean(finals):.4f} | {' / '.join(str(run['seconds']['total']) for run in group)} "
            f"| {begins} | {max(run['driver_mb'] for run in group)} "
            f"| {max(run['worker_mb'] for run in group)} |"
        )
    first = runs[0]
    print(f"\n1000 steps: {first['full_step']:.4f}; noise floor: {first['noise_floor']:.4f}")
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": machine(), "runs": runs}
    (RESULTS / "main_job.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
