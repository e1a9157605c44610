"""A long run at small size: memory, file descriptors and processes must stay as they are.

    python -m benchmarks.soak --minutes 30

One run of ``sft-rl train`` with a rollout worker goes on until it gets SIGTERM. Every few seconds
the resident memory of driver, worker and Ray's own processes, the object store's use and the open
files are read. Growth is the mean of the last three minutes over the mean of the three minutes
after the warm-up.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.chaos import SETTINGS, descendants
from benchmarks.machine import RESULTS, machine

SAMPLE_S = 5.0
WARM_UP_S = 180.0
WINDOW_S = 180.0
GRACE_S = 20.0


def group(title: str) -> str:
    """What a process is, by its command line."""
    if title.startswith("ray::RolloutWorker"):
        return "worker"
    return "ray"


def private_mb(pid: int) -> float:
    """Resident memory without pages shared with others, such as the object store, in MB."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE") / 2**20


def num_files(pid: int) -> int:
    """Open file descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def store_mb(pids: list[int]) -> float:
    """Pages of the object store's shared memory that any process has touched, in MB."""
    largest = 0.0
    for pid in pids:
        pages = Path(f"/proc/{pid}/statm").read_text().split()
        largest = max(largest, int(pages[2]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
    return largest


def sample(driver: int) -> dict[str, float]:
    """Read everything once."""
    processes = {driver: "driver", **{p: group(t) for p, t in descendants(driver).items()}}
    row: dict[str, float] = {"processes": len(processes), "files": 0.0}
    for pid, name in processes.items():
        try:
            row[f"{name}_mb"] = row.get(f"{name}_mb", 0.0) + private_mb(pid)
            row["files"] += num_files(pid)
        except OSError:  # it has just ended
            row["processes"] -= 1
    row["store_mb"] = store_mb([p for p, name in processes.items() if name == "ray"])
    return row


def follow(process: subprocess.Popen[bytes], seconds: float) -> list[dict[str, float]]:
    """Read until the time is over, or the run has ended, which it must not."""
    rows, begun = [], time.monotonic()
    while (now := time.monotonic() - begun) < seconds:
        if process.poll() is not None:
            break
        rows.append({"seconds": round(now, 1), **sample(process.pid)})
        time.sleep(SAMPLE_S)
    return rows


def growth(rows: list[dict[str, float]], name: str) -> dict[str, float]:
    """Means of the first and the last window after the warm-up, and the growth in per cent."""
    end = rows[-1]["seconds"]
    first = [r[name] for r in rows if WARM_UP_S <= r["seconds"] < WARM_UP_S + WINDOW_S]
    last = [r[name] for r in rows if r["seconds"] > end - WINDOW_S]
    percent = 100.0 * (mean(last) / mean(first) - 1.0)
    return {"first": round(mean(first), 2), "last": round(mean(last), 2), "%": round(percent, 2)}


def still_there(processes: dict[int, str]) -> list[str]:
    """Command lines of what has not ended by itself after a while."""
    deadline = time.monotonic() + GRACE_S
    while left := [t.strip() for pid, t in processes.items() if Path(f"/proc/{pid}").exists()]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return left


def main() -> None:
    """Run, read, print a table, keep it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "sft_rl", "train", "swiss_roll", *SETTINGS]
        command += ["rollout.num_workers=1", "training.num_iterations=10000000"]
        # Rates so low that nothing drifts in all that time.
        command += ["training.lr_decay=none", "policy.learning_rate=1e-7"]
        command += ["critic.learning_rate=1e-6", "value.learning_rate=1e-6", "--out", str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        rows = follow(process, 60.0 * args.minutes)
        below = descendants(process.pid)
        process.send_signal(signal.SIGTERM)  # does nothing to a run that has ended
        begun = time.monotonic()
        code = process.wait()
        seconds_to_save = round(time.monotonic() - begun, 1)
        left = still_there(below)
        iterations = sum(1 for _ in (out / "metrics.csv").open()) - 1
    names = ("driver_mb", "worker_mb", "ray_mb", "store_mb", "files", "processes")
    table = {name: growth(rows, name) for name in names}
    print("| | after 3 minutes | at the end | growth |\n|---|---|---|---|")
    for name, row in table.items():
        print(f"| {name} | {row['first']} | {row['last']} | {row['%']} % |")
    print(f"{iterations} iterations; SIGTERM: exit {code} after {seconds_to_save} s; left: {left}")
    result: dict[str, Any] = {
        "machine": machine(),
        "minutes": args.minutes,
        "iterations": iterations,
        "growth": table,
        "exit_code": code,
        "seconds_to_save": seconds_to_save,
        "processes_left": left,
        "samples": rows[:: max(len(rows) // 60, 1)],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
