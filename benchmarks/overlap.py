"""Seconds per iteration: serial in one process, against one learner and one worker on two cores.

    python -m benchmarks.overlap --preset swiss_roll

Three ways to run the same work, in turn, several rounds: everything in one single-threaded process;
one Ray worker, strictly on-policy; one Ray worker that draws the next iteration meanwhile
(``training.max_offpolicy_steps=1``). Prints medians over iterations and rounds, the speed against
serial, and the learner's time spent waiting for trajectories. Writes
``benchmarks/results/overlap-PRESET.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.machine import RESULTS, machine

WAYS = {
    "serial, one process": ("rollout.num_workers=0", "training.max_offpolicy_steps=0"),
    "one worker, on-policy": ("rollout.num_workers=1", "training.max_offpolicy_steps=0"),
    "one worker, overlapped": ("rollout.num_workers=1", "training.max_offpolicy_steps=1"),
}
SKIPPED = 3
"""First iterations, in which the critic warms up and the workers start."""


def run_once(preset: str, settings: tuple[str, ...], iterations: int) -> pd.DataFrame:
    """Run a few iterations; return their rows of metrics.csv."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        sizes = [f"training.num_iterations={iterations}", f"training.eval_every={iterations}"]
        command = [sys.executable, "-m", "sft_rl", "train", preset, *sizes, *settings]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "--out", str(out)],
            env=environment,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"the run failed: {' '.join(command)}")
        return pd.read_csv(out / "metrics.csv").iloc[SKIPPED:-1]


def main() -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="swiss_roll")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", dest="extra")
    args = parser.parse_args()
    rows: dict[str, list[pd.DataFrame]] = {name: [] for name in WAYS}
    for _ in range(args.rounds):
        for name, settings in WAYS.items():
            rows[name].append(run_once(args.preset, (*settings, *args.extra), args.iterations))
    results: dict[str, dict[str, Any]] = {}
    for name, rounds in rows.items():
        medians = sorted(frame["seconds"].median() for frame in rounds)
        whole = pd.concat(rounds)
        results[name] = {
            "seconds": float(whole["seconds"].median()),
            "low": float(medians[0]),
            "high": float(medians[-1]),
            "waiting": float(whole["seconds_waiting"].sum() / whole["seconds"].sum()),
        }
    serial = results["serial, one process"]["seconds"]
    print(f"| {args.preset} | ms an iteration | rounds | faster than serial | waiting |")
    print("|---|---|---|---|---|")
    for name, result in results.items():
        low, high = 1000 * result["low"], 1000 * result["high"]
        print(
            f"| {name} | {1000 * result['seconds']:.1f} | {low:.1f} - {high:.1f} "
            f"| {serial / result['seconds']:.2f} | {result['waiting']:.1%} |"
        )
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": machine(), "settings": vars(args), "results": results}
    (RESULTS / f"overlap-{args.preset}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
