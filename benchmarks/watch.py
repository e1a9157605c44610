"""Runs `sft-rl train` as a user does, and watches its memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

SAMPLE_EVERY_S = 0.25


class MemoryWatch:
    """Follows the peak resident memory of a process and of the Ray workers below it, in MB."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.driver = self.worker = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            self.driver = max(self.driver, _resident_mb(self.pid))
            for process in Path("/proc").iterdir():
                if process.name.isdigit() and b"RolloutWorker" in _read(process / "cmdline"):
                    self.worker = max(self.worker, _resident_mb(int(process.name)))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _resident_mb(pid: int) -> float:
    """Resident memory without pages shared with other processes, such as the object store."""
    fields = _read(Path(f"/proc/{pid}/statm")).split()
    if not fields:
        return 0.0
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE") / 2**20


def watched_train(
    preset: str, settings: list[str], out: Path, *, cache: Path | None = None
) -> MemoryWatch:
    """Run the command in a process of its own, on one thread; return the peaks of memory.

    Args:
        preset: What to train.
        settings: As on the command line.
        out: The run's folder.
        cache: In place of the user's.
    """
    command = [sys.executable, "-m", "sft_rl", "train", preset, *settings, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if cache is not None:
        environment["SFT_RL_CACHE"] = str(cache)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    with MemoryWatch(process.pid) as memory:
        if process.wait() != 0:
            raise SystemExit(f"the run failed: {' '.join(command)}")
    return memory
