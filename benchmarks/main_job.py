"""The main job as a user runs it: how good, how fast, and in how much memory.

    python -m benchmarks.main_job                  # seeds 0, 1, 2 at T = 10, 4, 2 and 1
    python -m benchmarks.main_job --cold           # and once from an empty cache

Prints the table of the README and writes ``benchmarks/results/main_job.json``. Numbers are of
held-out data; distances to the noiseless roll are of 102,400 samples.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.machine import RESULTS, machine
from benchmarks.watch import watched_train
from benchmarks.yardsticks import NUM_JUDGED, from_spiral
from sft_rl.api import load_sampler

COLUMNS = ("precision", "recall", "two_sample", "excess")
FAR = ("beyond_4_sigma", "beyond_10_sigma")


def run_once(settings: list[str], cache: Path | None) -> dict[str, Any]:
    """Run the command; return what is worth keeping of its summary, with the peaks of memory."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        memory = watched_train("swiss_roll", settings, out, cache=cache)
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
        distance, _ = from_spiral(load_sampler(out).sample(NUM_JUDGED, seed=1))
    seconds = summary["wall_seconds"]
    after = ("fine-tuning", "full-step sampler", "last evaluation", "plots")
    kept = (*COLUMNS, *(f"{name}_se" for name in COLUMNS))
    return {
        "settings": settings,
        "cold": cache is not None,
        "seconds_to_first_iteration": seconds["total"] - sum(seconds[phase] for phase in after),
        **{
            when: {name: summary[when][name] for name in kept}
            for when in ("before", "final", "full_step")
        },
        "floors": {name: summary["full_step"]["noise_floors"][name] for name in COLUMNS},
        "beyond_4_sigma": float((distance > 4.0).mean()),
        "beyond_10_sigma": float((distance > 10.0).mean()),
        "seconds": seconds,
        "driver_mb": round(memory.driver),
        "worker_mb": round(memory.worker),
    }


def row(name: str, group: list[dict[str, Any]]) -> str:
    """A line of the table: the mean of the seeds' runs with its standard error, and their times."""
    cells = [over_seeds([run["final"][column] for run in group], 4) for column in COLUMNS]
    cells += [over_seeds([100.0 * run[column] for run in group], 1) + " %" for column in FAR]
    seconds = " / ".join(f"{run['seconds']['total']:.0f}" for run in group)
    begins = " / ".join(f"{run['seconds_to_first_iteration']:.0f}" for run in group)
    memory = [max(run[who] for run in group) for who in ("driver_mb", "worker_mb")]
    return " | ".join(["", name, *cells, seconds, begins, *map(str, memory), ""]).strip()


def over_seeds(values: list[float], digits: int) -> str:
    """Mean and, of several, its standard error."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    error = stdev(values) / len(values) ** 0.5
    return f"{mean(values):.{digits}f} ± {error:.{digits}f}"


def main() -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cold", action="store_true", help="measure an empty cache, too")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 4, 2, 1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS / "main_job.json")
    parser.add_argument("settings", nargs="*", help="further key=value settings")
    args = parser.parse_args()
    print(
        "| run | precision | recall | two_sample | excess | > 4 sigma | > 10 sigma | seconds "
        "| to the first iteration | driver MB | worker MB |\n|---" + "|---" * 10 + "|"
    )
    runs = []
    if args.cold:
        with tempfile.TemporaryDirectory() as cache:
            runs.append(run_once(["seed=0", *args.settings], Path(cache)))
        print(row("from an empty cache", runs), flush=True)
    run_once(["training.num_iterations=1"], None)  # fills the cache
    for steps in args.steps:
        # One step has no states on the way that a policy gradient could tell apart.
        named = any(setting.startswith("algorithm=") for setting in args.settings)
        own = ["algorithm=pathwise"] if steps == 1 and not named else []
        settings = [f"sampler.num_steps={steps}", *own, *args.settings]
        group = [run_once([*settings, f"seed={seed}"], None) for seed in args.seeds]
        print(row(" ".join(settings), group), flush=True)
        runs += group
    for name in ("full_step", "floors"):
        print(name, {column: round(runs[-1][name][column], 4) for column in COLUMNS})
    args.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine(), "runs": runs}
    args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
