"""What slow scorers cost: trajectories a second with a reward that takes half a second a batch.

    python -m benchmarks.scorers

The same training, in turn, in one process and one Ray, several rounds: with the critic alone;
beside it a reward that answers at once; and one that sleeps 0.5 s for every shard, with as many
scorers as an iteration has shards, and with one. A rollout worker draws ahead
(``training.max_offpolicy_steps=1``), so shards are scored while the learner updates. Starting
scorers takes seconds, so the first iterations are left out. Prints the table of docs/rewards.md and
writes ``benchmarks/results/scorers.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import sft_rl
from benchmarks.machine import RESULTS, machine
from sft_rl.distributed.session import RaySession

SECONDS = 0.5
NUM_SHARDS = 4
"""Of an iteration: two critic steps of two shards each."""
SKIPPED = 3
"""First iterations, in which scorers start."""
SETTINGS = (
    "training.batch_size=4096",
    "training.n_critic=2",
    "training.max_offpolicy_steps=1",
    "training.plots=false",
    "rollout.shards_per_batch=2",
    "rollout.num_workers=1",
    "rollout.num_cpus_per_worker=0.5",
    "critic.num_warmup_steps=0",
    "reward.num_scored=64",
    "metrics.num_samples=400",
    "metrics.num_exact=100",
    "metrics.num_projections=20",
)


@sft_rl.reward(wants="numpy")
def at_once(points: np.ndarray) -> np.ndarray:
    """1 on the right, else 0."""
    return np.asarray(points[:, 0] > 0, dtype=np.float32)


@sft_rl.reward(wants="numpy")
def slow(points: np.ndarray) -> np.ndarray:
    """The same, half a second later."""
    time.sleep(SECONDS)
    return at_once(points)


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


def run_once(settings: tuple[str, ...], iterations: int) -> pd.DataFrame:
    """Run some iterations; return those that are counted."""
    sizes = (f"training.num_iterations={iterations}", f"training.eval_every={iterations}")
    config = sft_rl.load_config("swiss_roll", (*SETTINGS, *sizes, *settings))
    with tempfile.TemporaryDirectory() as folder:
        sft_rl.fine_tune(config, out=Path(folder) / "run", observer=None)
        return pd.read_csv(Path(folder) / "run" / "metrics.csv").iloc[SKIPPED:-1]


def main() -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("settings", nargs="*")
    args = parser.parse_args()
    rows: dict[str, list[pd.DataFrame]] = {name: [] for name in WAYS}
    config = sft_rl.load_config("swiss_roll", SETTINGS)
    with RaySession(config.ray, config.rollout) as session:
        session.wait()
        for _ in range(args.rounds):
            for name, reward in WAYS.items():
                rows[name].append(run_once((reward, *args.settings), args.iterations))
    results: dict[str, dict[str, Any]] = {
        name: {
            "rate": float(pd.concat(rounds)["trajectories_per_second"].median()),
            "seconds": sorted(float(frame["seconds"].median()) for frame in rounds),
            "waiting": float(pd.concat(rounds)["seconds_waiting"].median()),
        }
        for name, rounds in rows.items()
    }
    best = results["critic alone"]["rate"]
    print("| reward | trajectories a second | s an iteration | waiting | of the critic alone |")
    print("|---|---|---|---|---|")
    for name, result in results.items():
        low, *_, high = result["seconds"]
        print(
            f"| {name} | {result['rate']:.0f} | {low:.2f} - {high:.2f} "
            f"| {result['waiting']:.2f} | {result['rate'] / best:.2f} |"
        )
    content = {"machine": machine(), "settings": vars(args), "results": results}
    (RESULTS / "scorers.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
