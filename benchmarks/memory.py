"""Peak memory of a run's processes, and bytes of an iteration through the object store.

    python -m benchmarks.memory                       # the swiss roll, the digits, the glyphs
    python -m benchmarks.memory --set algorithm=ppo   # with another setting

A run of 20 iterations with one worker, its memory without pages shared with other processes; and
the sizes that Ray reports for one version of the weights and for the trajectories of an iteration,
against the bytes of the arrays in them. Writes ``benchmarks/results/memory.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, machine
from benchmarks.watch import watched_train
from sft_rl.config import ResolvedConfig
from sft_rl.config.files import load_config
from sft_rl.jobs.build import build_runner
from sft_rl.jobs.dry_run import dry_run
from sft_rl.policy import to_arrays
from sft_rl.runs.resolve import resolve

ONE_WORKER = "rollout.num_workers=1"
SHORT = "training.num_iterations=20"


def peaks(preset: str, settings: list[str]) -> dict[str, float]:
    """Run the command; return the peak MB of driver and worker, and what a dry run says."""
    own = [ONE_WORKER, SHORT, *settings]
    with tempfile.TemporaryDirectory() as folder:
        memory = watched_train(preset, own, Path(folder) / "run")
    said = float(dry_run(load_config(preset, own))["memory, all"].removesuffix(" GiB"))
    return {
        "driver_mb": round(memory.driver),
        "worker_mb": round(memory.worker),
        "dry_run_mb": round(1024 * said),
    }


def traffic(config: ResolvedConfig) -> dict[str, int]:
    """Bytes of an iteration in the object store; needs Ray to run."""
    import ray

    def stored(value: Any) -> int:
        reference = ray.put(value)
        return int(ray.experimental.get_object_locations([reference])[reference]["object_size"])

    runner = build_runner(config)
    weights = to_arrays(runner.policy)
    num_shards = config.training.n_critic * config.rollout.shards_per_batch
    shards = [runner.collect(0, shard).to_numpy() for shard in range(num_shards)]
    arrays = [array for shard in shards for array in shard.values() if hasattr(array, "nbytes")]
    return {
        "trajectory_bytes": sum(stored(shard) for shard in shards),
        "own_bytes": sum(array.nbytes for array in arrays),
        "weight_bytes": stored(weights),
        "own_weight_bytes": sum(array.nbytes for array in weights.values()),
    }


def main() -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["swiss_roll", "digits", "glyphs16"])
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", dest="extra")
    args = parser.parse_args()
    rows = {preset: peaks(preset, args.extra) for preset in args.presets}

    from sft_rl.distributed.session import RaySession

    first = load_config(args.presets[0], [*args.extra, ONE_WORKER])
    with RaySession(first.ray, first.rollout) as session:
        session.wait()
        for preset, row in rows.items():
            row |= traffic(resolve(load_config(preset, [*args.extra, ONE_WORKER]))[0])
    print(
        "| preset | driver MB | by a dry run | worker MB | KB of trajectories an iteration "
        "| over their arrays | KB of weights a version |\n|---|---|---|---|---|---|---|"
    )
    for preset, row in rows.items():
        over = row["trajectory_bytes"] / row["own_bytes"] - 1.0
        print(
            f"| {preset} | {row['driver_mb']} | {row['dry_run_mb']} | {row['worker_mb']} "
            f"| {row['trajectory_bytes'] / 1000:.0f} | {over:.1%} "
            f"| {row['weight_bytes'] / 1000:.0f} |"
        )
    content = {"machine": machine(), "settings": args.extra, "rows": rows}
    (RESULTS / "memory.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
