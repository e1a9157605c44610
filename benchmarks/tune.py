"""What a search costs and gives: `sft-rl tune` as a user runs it.

    python -m benchmarks.tune                      # all parts
    python -m benchmarks.tune --parts overhead     # one of them

- ``steps``: 16 trials of the space ``lr_steps``; seconds, and the best against the preset's own,
  once more with three other seeds.
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
SEARCH_SEED, SEEDS = 10, (0, 1, 2)
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
    """Search learning rates for each step count; try the winners with seeds of their own."""
    seed = ("--seed", str(SEARCH_SEED))
    seconds, results = tune(folder / "steps", "lr_steps", num_trials, *settings, *seed)
    done = results[results["state"] == "done"]
    counts = sorted(int(steps) for steps in done["num_steps"].unique())
    own_runs = _over_seeds(folder / "own", counts, settings)
    print(f"\n{num_trials} trials of lr_steps: {seconds / 60:.1f} minutes, "
          f"{done['seconds'].median():.0f} s a trial (median)")  # fmt: skip
    print(f"| steps | the preset's own | best | with seeds {SEEDS}: own | best | rates |")
    print("|---|---|---|---|---|---|")
    rows = []
    for steps in counts:
        group = done[done["num_steps"] == steps]
        best = group.sort_values("distance").iloc[0]
        own = group[group["default"]]["distance"].min()
        rates = {str(k): float(best[k]) for k in best.index if str(k).endswith("learning_rate")}
        fixed = [*settings, *(f"{key}={rate}" for key, rate in rates.items())]
        again = own_runs[steps] if best["default"] else _over_seeds(
            folder / f"best-{steps}", [steps], fixed
        )[steps]  # fmt: skip
        rows.append({"steps": steps, "own": own, "best": best["distance"], "rates": rates,
                     "own_seeds": own_runs[steps], "best_seeds": again})  # fmt: skip
        shown = ", ".join(f"{key.split('.')[0]} {rate:.2e}" for key, rate in rates.items())
        print(f"| {steps} | {own:.4f} | {best['distance']:.4f} | {_spread(own_runs[steps])} "
              f"| {_spread(again)} | {shown} |")  # fmt: skip
    return {"num_trials": num_trials, "seconds": seconds, "seeds": SEEDS, "rows": rows}


def _over_seeds(folder: Path, steps: list[int], settings: list[str]) -> dict[int, list[float]]:
    """Run a configuration with each seed at each number of steps; return the distances."""
    grid = {"sampler.num_steps": {"grid": steps}, "seed": {"grid": list(SEEDS)}}
    space = write_space(folder.with_suffix(".yaml"), grid, {"rollout.num_workers": 0})
    _, results = tune(folder, space, len(steps) * len(SEEDS), *settings)
    return {t: list(results[results["num_steps"] == t]["distance"]) for t in steps}


def _spread(distances: list[float]) -> str:
    shown = " / ".join(f"{distance:.4f}" for distance in distances)
    return f"{sum(distances) / len(distances):.4f} ({shown})"


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
    sizes = {"rollout.num_workers": 0}
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
