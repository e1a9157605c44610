"""Every algorithm at every number of steps on the swiss roll: distance, seconds, time to quality.

    python -m benchmarks.algorithms                              # all, seeds 0, 1, 2
    python -m benchmarks.algorithms --algorithms ppo --steps 10  # some
    python -m benchmarks.algorithms --cold                       # each from an empty cache

Each run is ``sft-rl train swiss_roll algorithm=A sampler.num_steps=T seed=S`` in a process of its
own, on one core without Ray (the numbers are the same with any number of workers); the pretrained
model is in the cache, or with `--cold` each run trains its own. `--side-by-side 2` runs two at a
time, on a core each.

Time to quality is the time from the start of the process until the run has saved a result whose
distance to the held-out reference is at most the bar. Prints the table of the docs and writes
``benchmarks/results/algorithms.json``, or ``algorithms-cold.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.machine import RESULTS, machine

ALGORITHMS = ("sft_pg", "ppo", "hybrid", "pathwise")
BARS = (0.010, 0.0075)
EVAL_EVERY = 25


def run_once(extra: list[str], cold: bool, job: tuple[str, int, int]) -> dict[str, Any]:
    """Train in a process of its own; return what it reached, and when."""
    algorithm, steps, seed = job
    settings = [
        f"algorithm={algorithm}",
        f"sampler.num_steps={steps}",
        f"seed={seed}",
        "rollout.num_workers=0",
        f"training.checkpoint_every={EVAL_EVERY}",
        "training.keep_checkpoints=1000",
        *extra,
    ]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "sft_rl", "train", "swiss_roll", *settings]
        cache = {"SFT_RL_CACHE": f"{folder}/cache"} if cold else {}
        begun = time.time()
        done = subprocess.run(
            [*command, "--out", str(out)],
            env={**os.environ, "OMP_NUM_THREADS": "1", **cache},
            stdout=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"the run failed: {' '.join(command)}")
        seconds = time.time() - begun
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
        reached = time_to_quality(out, begun)
    return {
        "algorithm": algorithm,
        "num_steps": steps,
        "seed": seed,
        "initial": summary["sliced_wasserstein_initial"],
        "final": summary["sliced_wasserstein_final"],
        "seconds": round(seconds, 1),
        "seconds_to": reached,
    }


def time_to_quality(out: Path, begun: float) -> dict[str, float | None]:
    """Seconds after `begun` at which a saved result was first within each bar."""
    from sft_rl.data import load_dataset
    from sft_rl.metrics.evaluation import Evaluator
    from sft_rl.runs.folder import RunFolder
    from sft_rl.storage.checkpoint import load

    store = RunFolder.open(out)
    policy, _ = store.result()
    evaluator = Evaluator(load_dataset(store.config.data), store.config.metrics)
    measure = evaluator.measure.watching(evaluator.reference)
    reached: dict[str, float | None] = {str(bar): None for bar in BARS}
    for folder in sorted((out / "checkpoints").iterdir()):
        policy.load_state_dict(load(folder).tensors["best"])
        distance = measure(evaluator.samples(policy, few=True))["sliced_wasserstein"]
        for bar in BARS:
            if distance <= bar and reached[str(bar)] is None:
                reached[str(bar)] = round(folder.stat().st_mtime - begun, 1)
    return reached


def table(runs: list[dict[str, Any]]) -> str:
    """Lay out the runs, a row for each algorithm and number of steps."""
    heads = " | ".join(f"s to ≤ {bar:g}" for bar in BARS)
    lines = [
        f"| algorithm | T | before | after, each seed | mean | s, whole run | {heads} |",
        "|---|---|---|---|---|---|" + "---|" * len(BARS),
    ]
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["algorithm"], run["num_steps"]), []).append(run)
    for (algorithm, steps), group in groups.items():
        finals = [run["final"] for run in group]
        times = [_times(group, str(bar)) for bar in BARS]
        lines.append(
            f"| `{algorithm}` | {steps} | {group[0]['initial']:.4f} "
            f"| {' / '.join(f'{final:.4f}' for final in finals)} | {mean(finals):.4f} "
            f"| {median(run['seconds'] for run in group):.0f} | {' | '.join(times)} |"
        )
    return "\n".join(lines)


def _times(group: list[dict[str, Any]], bar: str) -> str:
    """Seconds of every seed, a dash where the bar was not reached."""
    times = [run["seconds_to"][bar] for run in group]
    return " / ".join("-" if t is None else f"{t:.0f}" for t in times)


def main() -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--algorithms", nargs="+", default=ALGORITHMS)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 4, 2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", dest="extra")
    parser.add_argument("--side-by-side", type=int, default=1, metavar="N")
    parser.add_argument("--cold", action="store_true", help="with an empty cache for each run")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    jobs = list(product(args.algorithms, args.steps, args.seeds))
    with ThreadPoolExecutor(args.side_by_side) as pool:
        runs = list(pool.map(partial(run_once, args.extra, args.cold), jobs))
    print(table(runs))
    out = args.out or RESULTS / f"algorithms{'-cold' if args.cold else ''}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine(), "side_by_side": args.side_by_side, "runs": runs}
    out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
