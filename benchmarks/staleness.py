"""Quality against how many versions old the weights are that trajectories are drawn with.

    python -m benchmarks.staleness               # swiss_roll, T = 10, seeds 0, 1, 2, one process
    python -m benchmarks.staleness --ages 0 1

Prints a table, means over seeds with standard errors, and writes
``benchmarks/results/staleness.json``. How much the ratios leave of a batch is that of one
iteration: effective shares at the first step, at the worst and of whole chains, and ln(1 + chi^2).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import sft_rl
from benchmarks.machine import RESULTS, machine
from benchmarks.main_job import over_seeds

QUALITY = ("two_sample", "precision", "recall", "excess")
ITERATION = 101


def run_once(age: int, seed: int, settings: list[str]) -> dict[str, float]:
    """Fine-tune with weights of some age; return what the table is made of."""
    own = [f"seed={seed}", f"training.max_offpolicy_steps={age}", "training.plots=false"]
    own += ["metrics.full_step=off", "rollout.num_workers=0", *settings]
    with tempfile.TemporaryDirectory() as folder:
        config = sft_rl.load_config("swiss_roll", own)
        result = sft_rl.fine_tune(config, out=Path(folder) / "run", observer=None)
        (row,) = result.history[result.history["iteration"] == ITERATION].to_dict("records")
    found = {name: float(result.metrics["final"][name]) for name in QUALITY}
    steps = [row.get(f"effective_share_{k}", 1.0) for k in range(config.sampler.num_steps)]
    chain = {str(k): float(v) for k, v in row.items() if str(k).endswith("_chain")}
    return {**found, "first": steps[0], "worst": min(steps), **chain}


def main() -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--ages", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    kept: dict[int, list[dict[str, Any]]] = {}
    for age in args.ages:
        runs = kept[age] = [run_once(age, seed, args.settings) for seed in args.seeds]
        names = runs[0] if age else {name: 1.0 for name in QUALITY}
        told = (f"{name} {over_seeds([run[name] for run in runs], 4)}" for name in names)
        print(f"| {age} | " + " | ".join(told) + " |", flush=True)
        content = json.dumps({"machine": machine(), "seeds": args.seeds, "runs": kept}, indent=1)
        (args.results / "staleness.json").write_text(content + "\n")


if __name__ == "__main__":
    main()
