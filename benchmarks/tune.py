"""What a search costs and gives: `sft-rl tune` as a user runs it.

    python -m benchmarks.tune                      # all three parts
    python -m benchmarks.tune --parts overhead     # one of them

- ``steps``: 16 trials of the space ``lr_steps``; seconds, and the best against the preset's own.
- ``overhead``: seconds of a trial beyond `sft-rl train` with the same configuration.
- ``asha``: share of the full budget that early stopping spends, and what it loses.

Prints a table for each and writes ``benchmarks/results/tune.json``. Settings after ``--set`` go
to every run, such as ``training.num_iterations=20`` to try the script.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks.machine import RESULTS, machine

PARTS = ("steps", "overhead", "asha")
ONE_AT_A_TIME = ("learner.num_cpus=1.0", "rollout.num_workers=1", "rollout.num_cpus_per_worker=1.0")
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
    """Search learning rates for each step count."""
    seconds, results = tune(folder / "steps", "lr_steps", num_trials, *settings)
    done = results[results["state"] == "done"]
    print(f"\n{num_trials} trials of lr_steps: {seconds / 60:.1f} minutes")
    print("| steps | the preset's own | best | learning rates of policy, critic, value |")
    print("|---|---|---|---|")
    rows = []
    for steps, group in done.groupby("num_steps"):
        best = group.sort_values("distance").iloc[0]
        own = group[group["default"]]["distance"]
        rates = {k: float(best[k]) for k in best.index if str(k).endswith("learning_rate")}
        rows.append({"steps": steps, "own": float(own.min()), "best": best["distance"], **rates})
        shown = ", ".join(f"{rate:.2e}" for rate in rates.values())
        print(f"| {steps} | {own.min():.4f} | {best['distance']:.4f} | {shown} |")
    return {"num_trials": num_trials, "seconds": seconds, "rows": rows}


def measure_overhead(folder: Path, num_trials: int, settings: list[str]) -> dict[str, Any]:
    """Run the same configuration as trials one after another, and as runs of its own."""
    alone = [
        sft_rl("train", "swiss_roll", *settings, *ONE_AT_A_TIME, f"seed={seed}",
               "--out", str(folder / f"train-{seed}"))
        for seed in range(num_trials)
    ]  # fmt: skip
    seeds = {"seed": {"grid": list(range(num_trials))}}
    space = write_space(folder / "seeds.yaml", seeds, {})
    seconds, _ = tune(folder / "seeds", space, num_trials, *settings, *ONE_AT_A_TIME)
    overhead = (seconds - sum(alone)) / num_trials
    print(f"\n{num_trials} runs of `train`: {sum(alone):.1f} s; as trials one after another: "
          f"{seconds:.1f} s; overhead of a trial {overhead:+.1f} s")  # fmt: skip
    return {"train_seconds": alone, "tune_seconds": seconds, "overhead_seconds": overhead}


def measure_asha(folder: Path, num_trials: int, settings: list[str]) -> dict[str, Any]:
    """Run one search with and without early stopping."""
    sizes = {
        "rollout.num_workers": 1,
        "rollout.num_cpus_per_worker": 0.5,
        "learner.num_cpus": 0.5,
        "sampler.num_steps": 4,
    }
    space = write_space(folder / "rates.yaml", RATES, sizes)
    rows = []
    print("\n| scheduler | iterations run | best | minutes |\n|---|---|---|---|")
    for scheduler in ("none", "asha"):
        out = folder / scheduler
        seconds, results = tune(out, space, num_trials, *settings, "--scheduler", scheduler)
        row = {
            "scheduler": scheduler,
            "budget": float(results["percent"].mean() / 100.0),
            "best": float(results[results["state"] == "done"]["distance"].min()),
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
    parser.add_argument("--num-runs", type=int, default=4, help="of `overhead`")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value")
    args = parser.parse_args()
    content: dict[str, Any] = {"machine": machine(), "settings": args.set}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sft_rl("pretrain", "swiss_roll", *args.set)  # fills the cache
        if "steps" in args.parts:
            content["steps"] = measure_steps(folder, args.num_trials, args.set)
        if "overhead" in args.parts:
            content["overhead"] = measure_overhead(folder, args.num_runs, args.set)
        if "asha" in args.parts:
            content["asha"] = measure_asha(folder, args.num_trials, args.set)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "tune.json").write_text(json.dumps(content, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
