"""Fine-tune the swiss roll with other libraries' PPO; distance before and after, seconds.

    python -m benchmarks.integrations                          # all, seeds 0, 1, 2
    python -m benchmarks.integrations --examples sb3_swiss_roll --seeds 0

Each run is ``python -m examples.NAME --seed S`` in a process of its own, one thread, one after the
other. Seconds are those of the training alone. Prints the table of docs/env.md and writes
``benchmarks/results/integrations.json``, where other examples' numbers stay.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.machine import RESULTS, machine

EXAMPLES = ("sb3_swiss_roll", "rllib_swiss_roll", "ppo_single_file")


def run_once(example: str, seed: int) -> dict[str, Any]:
    """Run an example; return what it reports."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, "-m", f"examples.{example}", "--seed", str(seed)]
        subprocess.run([*command, "--json", str(file)], env=environment, check=True)
        return {"example": example, **json.loads(file.read_text())}


def versions() -> dict[str, str]:
    """Versions of the libraries."""
    from importlib.metadata import version

    return {name: version(name) for name in ("stable-baselines3", "ray", "gymnasium")}


def main() -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", nargs="+", choices=EXAMPLES, default=EXAMPLES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    runs = [run_once(name, seed) for name in args.examples for seed in args.seeds]
    print("| example | before, each seed | after, each seed | after : before | seconds |")
    print("|---|---|---|---|---|")
    for name in args.examples:
        group = [run for run in runs if run["example"] == name]
        before, after, seconds = (
            [run[key] for run in group] for key in ("before", "after", "seconds")
        )
        print(
            f"| {name} | {' / '.join(f'{d:.4f}' for d in before)} "
            f"| {' / '.join(f'{d:.4f}' for d in after)} "
            f"| {mean(after) / mean(before):.2f} "
            f"| {' / '.join(f'{s:.0f}' for s in seconds)} |"
        )
    keep(runs)


def keep(runs: list[dict[str, Any]]) -> None:
    """Write the numbers, beside those of examples that were not run this time."""
    file = RESULTS / "integrations.json"
    others = json.loads(file.read_text())["runs"] if file.exists() else []
    names = {run["example"] for run in runs}
    runs = [run for run in others if run["example"] not in names] + runs
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": {**machine(), **versions()}, "runs": runs}
    file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
