"""What a search costs and gives: `sft-rl tune` as a user runs it.

    python -m benchmarks.tune                      # all parts
    python -m benchmarks.tune --parts overhead     # one of them

- ``steps``: 16 configurations of the space ``lr_steps``, over three seeds; seconds, and the winners
  against the preset's own, trained again with three seeds more.
- ``overhead``: seconds of a trial beyond `sft-rl train` with the same configuration.
- ``asha``: share of the full budget that early stopping spends, and what it loses.

Prints a table for each and writes ``benchmarks/results/tune.json``; parts that are not measured
keep their numbers there. Settings after ``--set`` go to every run, such as
``training.num_iterations=20`` to try the script.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks.machine import RESULTS, machine

PARTS = ("steps", "overhead", "asha")
ONE_AT_A_TIME = ("rollout.num_workers=0", f"learner.num_cpus={os.cpu_count()}")
RATES = {
    "policy.learning_rate": {"loguniform": [5e-5, 1e-3]},
    "critic.learning_rate": {"loguniform": [5e-4, 8e-3]},
}


def sft_rl(*arguments: str) -> float:
    """Run a command; return its seconds."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "sft_rl", *arguments]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode != 0:
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.perf_counter() - begun


def tune(folder: Path, space: str, num_trials: int, *arguments: str) -> tuple[float, pd.DataFrame]:
    """Run a search; return its seconds and its table."""
    sizes = ("--search", space, "--num-trials", str(num_trials), "--out", str(folder))
    seconds = sft_rl("tune", "swiss_roll", *arguments, *sizes)
    return seconds, pd.read_csv(folder / "results.csv")


def write_space(file: Path, space: dict[str, Any], settings: dict[str, Any]) -> str:
    """Write a search space; return its path."""
    file.write_text(yaml.safe_dump({"settings": settings, "space": space}))
    return str(file)


def measure_steps(folder: Path, num_trials: int, settings: list[str]) -> dict[str, Any]:
    """Search learning rates for each step count; the search trains its winners again."""
    out, seeds = folder / "steps", ("--seeds", "3", "--final-seeds", "3")
    seconds, results = tune(out, "lr_steps", num_trials, *settings, *seeds)
    print(f"\n{num_trials} configurations of lr_steps, 3 seeds each: {seconds / 60:.1f} minutes, "
          f"{results['seconds'].median():.0f} s a trial (median)")  # fmt: skip
    print((out / "report.md").read_text())
    final = pd.read_csv(out / "final.csv").to_dict("records")
    return {"num_trials": num_trials, "seconds": seconds, "final": final}


def measure_overhead(folder: Path, num_trials: int, settings: list[str]) -> dict[str, Any]:
    """Run the same configuration as trials one after another, and as runs of its own."""
    alone = [
        sft_rl("train", "swiss_roll", *settings, *ONE_AT_A_TIME, f"seed={seed}",
               f"training.keep_checkpoints={kept}", "--out", str(folder / f"train-{kept}-{seed}"))
        for kept in (1, 2) for seed in range(num_trials // 2)
    ]  # fmt: skip
    kept = {"training.keep_checkpoints": {"grid": [1, 2]}}  # changes nothing that takes time
    space, seeds = write_space(folder / "kept.yaml", kept, {}), str(num_trials // 2)
    sizes = ("--seeds", seeds, "--final-seeds", "0")
    seconds, _ = tune(folder / "kept", space, 2, *settings, *ONE_AT_A_TIME, *sizes)
    overhead = (seconds - sum(alone)) / num_trials
    print(f"\n{num_trials} runs of `train`: {sum(alone):.1f} s; as trials one after another: "
          f"{seconds:.1f} s; overhead of a trial {overhead:+.1f} s")  # fmt: skip
    return {"train_seconds": alone, "tune_seconds": seconds, "overhead_seconds": overhead}


def measure_asha(folder: Path, num_trials: int, settings: list[str]) -> dict[str, Any]:
    """Run one search with and without early stopping."""
    sizes = {"rollout.num_workers": 0}
    space = write_space(folder / "rates.yaml", RATES, sizes)
    rows = []
    print("\n| scheduler | iterations run | best | minutes |\n|---|---|---|---|")
    for scheduler in ("none", "asha"):
        out = folder / scheduler
        how = ("--scheduler", scheduler, "--final-seeds", "0")
        seconds, results = tune(out, space, num_trials, *settings, *how)
        row = {
            "scheduler": scheduler,
            "budget": float(results["percent"].mean() / 100.0),
            "best": float(results[results["state"] == "done"]["validation"].min()),
            "seconds": seconds,
        }
        rows.append(row)
        print(f"| {scheduler} | {row['budget']:.0%} | {row['best']:.4f} | {seconds / 60:.1f} |")
    return {"num_trials": num_trials, "rows": rows}


def main() -> None:
    """Measure, print the tables, keep the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--num-trials", type=int, default=16, help="of `steps` and `asha`")
    parser.add_argument("--num-runs", type=int, default=4, help="of `overhead`, an even number")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the runs and reports here")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value")
    args = parser.parse_args()
    file = RESULTS / "tune.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    content |= {"machine": machine(), "settings": args.set}
    with ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        sft_rl("pretrain", "swiss_roll", *args.set)  # fills the cache
        if "steps" in args.parts:
            content["steps"] = measure_steps(folder, args.num_trials, args.set)
        if "overhead" in args.parts:
            content["overhead"] = measure_overhead(folder, args.num_runs, args.set)
        if "asha" in args.parts:
            content["asha"] = measure_asha(folder, args.num_trials, args.set)
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
