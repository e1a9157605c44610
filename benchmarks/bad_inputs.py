"""Inputs as they come: wrong types, extremes, files, folders, streams and signals, case by case.

``python -m benchmarks.bad_inputs`` runs every case in a process of its own, forked from a server
that did the imports once, and prints how many ended as they must, and every traceback, hang,
silent acceptance, file of somebody that was touched, and error of more than a line.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.bad_cases import MINE, TINY, Case, file_cases, settings_cases, word_cases
from benchmarks.bad_places import place_cases, run_cases
from sft_rl.cli import main as sft_rl

HANG_S = 120.0
SERVER = multiprocessing.get_context("forkserver")
PRELOADED = ["sft_rl.jobs.commands", "sft_rl.jobs.plots", "tuning.search", "cluster.submit"]


def cases() -> list[Case]:
    """All of them, those that are alike side by side."""
    families = (settings_cases, word_cases, file_cases, run_cases, place_cases)
    return [case for family in families for case in family()]


def make_run(folder: Path) -> Path:
    """Make the finished run that cases damage."""
    code = sft_rl(["train", "swiss_roll", *TINY, "--out", str(folder / "run")])
    assert code == 0, "the run itself"
    return folder / "run"


def run_case(case: Case, run: Path, **environment: str) -> str:
    """Run a case in a folder of its own; return what was wrong, or nothing.

    Args:
        case: What to run.
        run: A finished run, to be copied.
        environment: Variables that the server of processes does not have.
    """
    with tempfile.TemporaryDirectory(prefix="bad-") as name:
        said, folder = Path(name), Path(name) / "here"
        folder.mkdir()
        (folder / MINE).write_text("mine")
        if case.needs_run:
            shutil.copytree(run, folder / "run")
        if case.prepare is not None:
            case.prepare(folder)
        before = foreign(folder)
        process = SERVER.Process(
            target=_be, args=(replace(case, prepare=None), str(folder), environment)
        )
        process.start()
        if case.signal_after is not None:
            number, seconds = case.signal_after
            while process.is_alive() and not (said / "err").exists():
                time.sleep(0.01)  # while it is being forked it ignores signals
            time.sleep(seconds)
            assert process.pid is not None
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)
        process.join(HANG_S)
        if process.exitcode is None:
            process.kill()
            process.join()
            return "hang"
        error = (said / "err").read_text(errors="replace") if (said / "err").exists() else ""
        out = (said / "out").read_text(errors="replace") if (said / "out").exists() else ""
        return verdict(case, process.exitcode, out, error, before == foreign(folder))


def verdict(case: Case, code: int, out: str, error: str, untouched: bool) -> str:
    """Say what was wrong with the end of a case, or nothing."""
    if "Traceback" in error + out:
        return f"traceback: {error.strip().splitlines()[-1][:200]}"
    if not untouched:
        return "touched files of others"
    if code == 0 and 0 not in case.codes:
        return "silent acceptance"
    if code not in case.codes:
        return f"exit code {code}, expected {case.codes}: {error.strip()[:200]}"
    if code in (1, 2) and not error.startswith("usage:") and error.count("\n") != 1:
        return f"{error.count(chr(10))} lines of errors: {error[:300]}"
    return ""


def foreign(folder: Path) -> dict[str, Any]:
    """What is there that no command may touch: names and contents."""
    found = {
        str(p.relative_to(folder)): p for p in [folder / MINE, *(folder / "others").rglob("*")]
    }
    return {name: p.read_bytes() for name, p in found.items() if p.is_file()}


def _be(case: Case, folder: str, environment: dict[str, str]) -> None:
    """Be `sft-rl`, as a shell would start it."""
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"../{name}", os.O_WRONLY | os.O_CREAT), number)
    if case.stdout == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    elif case.stdout == "closed":
        os.close(1)
        sys.stdout = sys.__stdout__ = None  # type: ignore[misc]
    elif case.stdout == "left":
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 1)
    sys.exit(sft_rl(list(case.words)))


def main() -> None:
    """Run the cases and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--every", type=int, default=1, help="take each so many")
    parser.add_argument("--first", type=int, default=0, help="begin with that one")
    args = parser.parse_args()
    SERVER.set_forkserver_preload(PRELOADED)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="bad-") as folder:
        os.environ["SFT_RL_CACHE"] = f"{folder}/cache"
        run = make_run(Path(folder))
        chosen = [case for case in cases() if args.only in case.name][args.first :: args.every]
        for case in chosen:
            wrong = run_case(case, run)
            counts[wrong.partition(":")[0] or "right"] += 1
            if wrong:
                print(f"{case.name!r}: {wrong}", flush=True)
    print(json.dumps({"cases": len(chosen), **counts}))


if __name__ == "__main__":
    main()
