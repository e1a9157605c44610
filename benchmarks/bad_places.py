"""More cases of `benchmarks.bad_inputs`: damaged runs, others' folders, streams, signals."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from benchmarks.bad_cases import COMMANDS, TINY, Case, Prepare, in_place, written

# ---- runs whose files are damaged ------------------------------------------------------------

DAMAGES: dict[str, Prepare] = {
    "emptied": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "garbage": lambda file: file.write_bytes(bytes(range(256)) * 9),
    "a brace": lambda file: file.write_bytes(b"{"),
    "deep": lambda file: file.write_bytes(b"[" * 100_000),
    "removed": lambda file: file.unlink(),
    "a pipe": lambda file: _instead(file, os.mkfifo),
    "a folder": lambda file: _instead(file, os.mkdir),
}


def _instead(file: Path, make: Prepare) -> None:
    file.unlink()
    make(file)


def _removed(folder: Path) -> None:
    shutil.rmtree(folder)


OF_A_RUN = {
    "config.yaml": (2,),
    "checkpoints/000002/manifest.json": (0,),  # the one before is taken
    "checkpoints/000002/meta.json": (0,),
    "checkpoints/000002/average.safetensors": (0,),
    "metrics.csv": (0, 1, 2),
    "summary.json": (0, 1, 2),
}
USERS: dict[str, tuple[str, ...]] = {
    "evaluate": ("evaluate", "run"),
    "sample": ("sample", "run", "--num", "2", "--out", "out.npy"),
    "resume": (
        *("train", "swiss_roll", *TINY, "--out", "run", "--resume"),
        "training.num_iterations=3",
    ),
}


def run_cases() -> Iterator[Case]:
    """Every user of a run's folder with every file of it damaged in every way."""
    for user, words in USERS.items():
        for name, codes in OF_A_RUN.items():
            for damage, make in DAMAGES.items():
                prepare = in_place(f"run/{name}", make)
                yield Case(f"{user}, {name} {damage}", words, codes, prepare, needs_run=True)
        for number in ("000001", "000002"):
            yield Case(
                f"{user}, checkpoint {number} removed",
                words,
                (0,),
                in_place(f"run/checkpoints/{number}", _removed),
                needs_run=True,
            )
        yield Case(
            f"{user}, no checkpoint",
            words,
            (0,) if user == "resume" else (2,),
            in_place("run/checkpoints", _removed),
            needs_run=True,
        )
    for num in ("0", "-1", "x", "1e3", "9" * 30, ""):
        words = ("sample", "run", "--num", num, "--out", "out.npy")
        yield Case(f"sample --num {num[:9]}", words, (1, 2), needs_run=True)
    for out in ("mine.txt", "run", "none/out.npy", "out.xyz", "out", "", ".", "x" * 300 + ".npy"):
        words = ("sample", "run", "--num", "2", "--out", out)
        yield Case(f"sample --out {out[:20]}", words, needs_run=True)
    for label in ("0", "-1", "x"):
        words = ("sample", "run", "--num", "2", "--out", "out.npy", "--label", label)
        yield Case(f"sample --label {label}", words, needs_run=True)
    yield Case(
        "export --adapter of none", ("export", "run", "--out", "out", "--adapter"), needs_run=True
    )
    for seed in ("x", "1.5", "true"):
        words = ("sample", "run", "--num", "2", "--out", "out.npy", "--seed", seed)
        yield Case(f"sample --seed {seed}", words, needs_run=True)


# ---- folders, streams, signals ---------------------------------------------------------------


def _others(folder: Path) -> None:
    for name in ("checkpoints/000000/a", "summary.json", "metrics.csv", "plots/path.png"):
        (folder / "others" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "others" / name).write_text("mine")


def place_cases() -> Iterator[Case]:
    """Folders that are somebody's, outputs that fail, signals at any time."""
    train = ("train", "swiss_roll", *TINY)
    for out in ("others", ".", "mine.txt", "mine.txt/run", "/proc/run", "/dev/null", "x" * 300):
        yield Case(f"train --out {out[:20]}", (*train, "--out", out), (1, 2), _others)
        yield Case(f"tune --out {out[:20]}", (*COMMANDS["tune"][:-1], out, *TINY), (1, 2), _others)
    settings = b"name: a\nslurm: {nodes: 1, directory: /a}\n"
    render = ("cluster", "render", "--settings", "s.yaml", "--target", "slurm", "--out")
    for out in ("mine.txt", ".", "none/x", "/dev/full", "x" * 300):
        make = in_place("s.yaml", written(settings))
        yield Case(f"render --out {out[:20]}", (*render, out), (1, 2), make)
    for name in ("a [/b] c", "by class é", "[bold]", "$(touch touched)", "\udcff", "a\tb", "🙂"):
        yield Case(f"train --out {name!r}", (*train, "--out", name), (0,))
        yield Case(f"evaluate {name!r}", ("evaluate", name))
    streams: tuple[Literal["closed", "left", "full"], ...] = ("closed", "left", "full")
    for stdout in streams:
        codes = (1,) if stdout == "full" else (0,)
        for words in (
            train,
            ("presets",),
            ("presets", "swiss_roll"),
            ("evaluate", "run"),
            ("--help",),
        ):
            name = f"{words[0]} with stdout {stdout}"
            yield Case(name, words, codes, needs_run="run" in words, stdout=stdout)
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        for tenths in range(0, 20, 2):
            endless = (*train, "--out", "run", "training.num_iterations=100000")
            yield Case(
                f"train, {number.name} after {tenths / 10} s",
                endless,
                (code, -number),  # before our own handlers are there
                signal_after=(number, tenths / 10),
            )
