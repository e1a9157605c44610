"""What slow scorers cost: trajectories a second with a reward that takes half a second a batch.

    python -m benchmarks.scorers --rounds 3

The same training, in turn: with the critic alone; beside it a reward that answers at once; and one
that sleeps 0.5 s for every shard, with one scorer and with as many as there are shards in an
iteration. A rollout worker draws ahead (``training.max_offpolicy_steps=1``), so shards are scored
while the learner updates; an iteration that takes longer than a score hides it. Prints the table of
docs/benchmarks.md and writes ``benchmarks/results/scorers.json``. Seconds are those of iterations
on a quiet machine: sleeping costs nothing, but starting scorers does, so the first are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import pandas as pd

import sft_rl
from benchmarks.machine import RESULTS, machine
from benchmarks.overlap import run_once

SECONDS = 0.5
NUM_SHARDS = 4
"""Of an iteration: two critic steps of two shards each."""
SETTINGS = (
    "training.batch_size=4096",
    "training.n_critic=2",
    "training.max_offpolicy_steps=1",
    "rollout.shards_per_batch=2",
    "rollout.num_workers=1",
    "rollout.num_cpus_per_worker=0.5",
    "critic.num_warmup_steps=0",
)


@sft_rl.reward(wants="numpy")
def at_once(points: np.ndarray) -> np.ndarray:
    """1 on the right, else 0."""
    return np.asarray(points[:, 0] > 0, dtype=np.float32)


@sft_rl.reward(wants="numpy")
def slow(points: np.ndarray) -> np.ndarray:
    """The same, half a second later."""
    time.sleep(SECONDS)
    return np.asarray(points[:, 0] > 0, dtype=np.float32)


def scored_by(function: str, num_scorers: int) -> str:
    """The setting of a reward beside the critic."""
    own = f"use: 'benchmarks.scorers:{function}', weight: 0.1, num_cpus_per_scorer: 0.1"
    return f"reward.terms=[critic, {{{own}, num_scorers: {num_scorers}}}]"


WAYS = {
    "critic alone": "reward=critic",
    "a reward that answers at once": scored_by("at_once", 1),
    f"{SECONDS} s a shard, {NUM_SHARDS} scorers": scored_by("slow", NUM_SHARDS),
    f"{SECONDS} s a shard, 1 scorer": scored_by("slow", 1),
}


def main() -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("settings", nargs="*")
    args = parser.parse_args()
    rows: dict[str, list[pd.DataFrame]] = {name: [] for name in WAYS}
    for _ in range(args.rounds):
        for name, reward in WAYS.items():
            settings = (*SETTINGS, reward, *args.settings)
            rows[name].append(run_once("swiss_roll", settings, args.iterations))
    results: dict[str, dict[str, Any]] = {}
    for name, rounds in rows.items():
        medians = sorted(float(frame["seconds"].median()) for frame in rounds)
        rate = float(pd.concat(rounds)["trajectories_per_second"].median())
        results[name] = {"rate": rate, "seconds": medians}
    best = results["critic alone"]["rate"]
    print("| reward | trajectories a second | s an iteration | of the critic alone |")
    print("|---|---|---|---|")
    for name, result in results.items():
        low, high = result["seconds"][0], result["seconds"][-1]
        share = result["rate"] / best
        print(f"| {name} | {result['rate']:.0f} | {low:.2f} - {high:.2f} | {share:.2f} |")
    content = {"machine": machine(), "settings": vars(args), "results": results}
    (RESULTS / "scorers.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
