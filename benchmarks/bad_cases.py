"""The cases of `benchmarks.bad_inputs`: command lines, and how they must end."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from sft_rl.config import Config
from sft_rl.config.files import all_keys

TINY = (
    "data.num_points=500",
    "model.width=8",
    "model.depth=1",
    "pretraining.num_iterations=2",
    "pretraining.batch_size=16",
    "pretraining.num_times=4",
    "sampler.num_steps=2",
    "critic.width=8",
    "critic.num_warmup_steps=0",
    "training.num_iterations=2",
    "training.batch_size=8",
    "training.checkpoint_every=1",
    "metrics.num_samples=40",
    "metrics.num_exact=10",
    "metrics.num_excess=100",
    "metrics.num_projections=2",
    "rollout.num_workers=0",
)
MINE = "mine.txt"
"""A file of somebody's in every case's folder."""

Prepare = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One command line, where it is typed, and how it must end.

    Attributes:
        name: What is tried.
        words: The command, without ``sft-rl``.
        codes: Exit codes that are right.
        prepare: Makes files in the folder where it runs; ``run`` is a finished run there, if
            `needs_run`.
        needs_run: Whether it needs one.
        stdout: What its stdout is.
        signal_after: A signal, and after how many seconds.
    """

    name: str
    words: tuple[str, ...]
    codes: tuple[int, ...] = (2,)
    prepare: Prepare | None = None
    needs_run: bool = False
    stdout: Literal["file", "closed", "left", "full"] = "file"
    signal_after: tuple[signal.Signals, float] | None = None


# ---- settings: every command, every field, wrong types and extremes --------------------------

NUMBERS = ("true", "x", "[1]", "{a: 1}", "nan", "1e400", "-1", "0x10", "!!int 1", "*a", "9" * 5000)
OF_KIND: dict[Any, tuple[str, ...]] = {
    int: (*NUMBERS, "1.5", "1:30", "2020-13-45"),
    float: NUMBERS,
    bool: ("x", "7", "[true]", "nan", "{a: true}"),
    str: ("[1]", "{a: 1}", "'x", '"x', "[x"),
    tuple: ("x", "7", "[x]", "[true]", "[[1]]", "{a: 1}", "[" * 3000, "[&a 1]", "[!!int 1]"),
    dict: ("x", "7", "[1]", "true", "{a: 1, a: 2}", "{[a]: 1}", "{a: &x 1}", "{" * 3000),
    Literal: ("x", "7", "[x]", "true", "{a: 1}"),
}
FEW = 3
COMMANDS = {
    "train": ("train", "swiss_roll"),
    "pretrain": ("pretrain", "swiss_roll"),
    "dry-run": ("train", "swiss_roll", "--dry-run"),
    "submit": ("submit", "--", "train", "swiss_roll"),
    "tune": (
        *("tune", "swiss_roll", "--search", "lr_steps", "--num-trials", "2"),
        *("--out", "search"),
    ),
}


def kind_of(key: str) -> Any:
    """The type of a setting that decides which values are wrong."""
    model: Any = Config
    for part in key.split("."):
        model = model.model_fields[part].annotation
    kinds = [kind for kind in get_args(model) if kind is not NoneType]
    if NoneType in get_args(model):
        model = kinds[0]
    if get_origin(model) is not None and get_origin(model) not in (tuple, dict, Literal):
        model = get_args(model)[0]  # Annotated
    return get_origin(model) or model


def settings_cases() -> Iterator[Case]:
    """Every field with every wrong value for `train`, with some for the other commands."""
    for key in all_keys():
        for command, words in COMMANDS.items():
            values = OF_KIND[kind_of(key)]
            for value in values if command == "train" else values[:FEW]:
                shown = value if len(value) < 40 else f"{value[:10]}… {len(value)}"
                yield Case(f"{command} {key}={shown}", (*words, *TINY, f"{key}={value}"))


def word_cases() -> Iterator[Case]:
    """Words that are no settings, and settings that do not go together."""
    pairs = (
        *("options=1 options.a=2", "model.unet=5 model.unet.x=1", "model.unet.=1", "sampler=3"),
        *(
            "policy.adam_betas=[0.9,1]",
            "reward=os:sep",
            "reward=:b",
            "algorithm=:b",
            "algorithm=a:",
        ),
        *("algorithm=os:path", "critic.objective=:x", "critic.objective=os:sep", "device=meta"),
        *("device=mps", "device=vulkan", "device=cpu:7", "device=cuda:99", "device=cuda:x"),
        *("learner.num_threads=1000000000000", "rollout.num_threads=100000000000"),
        *("pretrained.path=~/nothing/x", "pretrained.path=hub:x", "pretrained.path=./a/b"),
        *("pretrained.path=~nobody-here/x", "data.path=~nobody-here/x.npy", "data.path=/dev/zero"),
        *(
            "data.path=.",
            "data.path=none.csv",
            "data.path=mine.txt",
            "seed",
            "=1",
            "seed=1=2",
            "-x",
        ),
        *("--nonsense", "ray.address=ray://x", "ray.address=x", "options.a=1", "sampler.eta=2"),
        *("sampler.timesteps=[1,2]", "training.n_generator=999999", "data.name=file"),
        *("rollout.shards_per_batch=3", "learner.num_workers=2", "rollout.cuda_graphs=true"),
        *("sampler.num_steps=0", "sampler.num_steps=1001", "critic.kind=conv", "value.kind=conv"),
        *(
            "model.kind=unet",
            "data.name=digits",
            "training.batch_size=1",
            "training.batch_size=8.5",
        ),
    )
    with_ray = ("ray.address=ray://x", "ray.address=x")
    for pair in pairs:
        more = ("rollout.num_workers=1",) if pair in with_ray else ()
        yield Case(f"train {pair}", ("train", "swiss_roll", *TINY, *more, *pair.split(" ")))
    for words in (
        *((), ("train",), ("train", ""), ("train", "swissroll"), ("trian",), ("train", "--out")),
        *(("train", "swiss_roll", "--out", ""), ("train", "swiss_roll", "--out=")),
        *(("train", "swiss_roll", "--resume"), ("train", "swiss_roll", "--resume", "x")),
        *(("presets", "x"), ("presets", "../x"), ("evaluate",), ("evaluate", "none")),
        *(("evaluate", ""), ("evaluate", "mine.txt"), ("evaluate", "x" * 5000), ("sample", "none")),
        *(("sample", "none", "--num", "5", "--out", "a.npy"), ("export", "none", "--out", "a")),
        *(("evaluate", "nosuch://x"), ("evaluate", "s3://a:b@c/d"), ("train", "--config", "none")),
        *(("tune",), ("tune", "swiss_roll"), ("tune", "--resume", "none"), ("submit",)),
        *(("submit", "--", "rm", "x"), ("submit", "--", "train"), ("submit", "--cpus", "x")),
        *(("submit", "--", "train", "swiss_roll", "--out", "relative"), ("cluster",)),
        *(("cluster", "render"), ("jobs",), ("jobs", "logs"), ("doctor", "--x")),
        ("submit", "--", "train", "swiss_roll", "--out", "az://b/c?sig=abcd"),
        ("submit", "--", "train", "swiss_roll", "data.path=hf_" + "aB3" * 12),
    ):
        yield Case(" ".join(("sft-rl", *words))[:80], words)


# ---- files -----------------------------------------------------------------------------------

BOMB = "\n".join(
    [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'lol'}]" for i in range(9)]
)
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "a list": b"[1]",
    "a number": b"1",
    "unfinished": b"seed: [1",
    "an alias bomb": BOMB.encode(),
    "a tag": b"seed: !!int x",
    "a timestamp": b"seed: !!timestamp foo",
    "a date": b"seed: 2020-13-45",
    "an object": b"!!python/object/apply:os.system ['touch touched']",
    "a set": b"!!set {a, b}",
    "utf-16": "seed: 1".encode("utf-16"),
    "latin-1": "description: é".encode("latin-1"),
    "nulls": b"seed: 1\x00",
    "binary": bytes(range(256)) * 4,
    "deep lists": b"[" * 50_000,
    "deep blocks": b"- " * 50_000,
    "deep maps": b"{a: " * 50_000,
    "large": b"# " + b"x" * 300_000,
    "many digits": b"seed: " + b"9" * 5000,
    "two documents": b"seed: 1\n---\nseed: 2",
    "a key twice": b"seed: 1\nseed: 2",
    "unknown keys": b"sede: 1\nsaed: 2",
    "a section that is a number": b"data: 3",
    "a character that is none": b'seed: "\\UFFFFFFFF"',
    "tabs": b"data:\n\tseed: 1",
    "only null": b"null",
}
READERS: dict[str, tuple[str, ...]] = {
    "train --config": ("train", "--config", "file.yaml", *TINY),
    "dry-run --config": ("train", "--dry-run", "--config", "file.yaml"),
    "submit --config": ("submit", "--", "train", "--config", "file.yaml"),
    "submit --env": ("submit", "--env", "file.yaml", "--", "train", "swiss_roll"),
    "render --settings": ("cluster", "render", "--settings", "file.yaml", "--target", "slurm"),
    "tune --search": (
        *("tune", "swiss_roll", *TINY, "--search", "file.yaml", "--num-trials", "2"),
        *("--out", "search"),
    ),
    "evaluate": ("evaluate", "bad"),
    "sample": ("sample", "bad", "--num", "2", "--out", "out.npy"),
    "export": ("export", "bad", "--out", "out"),
    "train --resume": ("train", "swiss_roll", *TINY, "--out", "bad", "--resume"),
    "tune --resume": ("tune", "--resume", "bad"),
}
NOT_FILES: dict[str, Prepare] = {
    "a pipe": lambda file: os.mkfifo(file),
    "a folder": lambda file: file.mkdir(),
    "nothing": lambda file: None,
    "/dev/zero": lambda file: file.symlink_to("/dev/zero"),
    "/dev/full": lambda file: file.symlink_to("/dev/full"),
    "a link to itself": lambda file: file.symlink_to(file),
}


def file_cases() -> Iterator[Case]:
    """Every reader of settings with every bad content, and with what is no file."""
    for reader, words in READERS.items():
        target = "bad/search.yaml" if reader == "tune --resume" else "bad/config.yaml"
        place = target if "bad" in words else "file.yaml"
        prepares: dict[str, Prepare] = {
            name: lambda file, content=content: file.write_bytes(content)
            for name, content in CONTENTS.items()
        } | NOT_FILES
        for name, make in prepares.items():
            # Nothing but comments is a right, empty, environment.
            connects = (2, 3) if reader == "submit --env" else (2,)
            yield Case(f"{reader}: {name}", words, connects, _in_place(place, make))
    for suffix in (".npy", ".csv", ".parquet"):
        for name in ("empty", "binary", "nulls", "utf-16", "deep lists", "large"):
            content = CONTENTS[name]
            make = lambda file, content=content: file.write_bytes(content)  # noqa: E731
            words = ("train", "swiss_roll", *TINY, f"data.path=points{suffix}")
            yield Case(f"points {suffix}: {name}", words, (2,), _in_place(f"points{suffix}", make))
        for name, make in NOT_FILES.items():
            words = ("train", "swiss_roll", *TINY, f"data.path=points{suffix}")
            yield Case(f"points {suffix}: {name}", words, (2,), _in_place(f"points{suffix}", make))


def _in_place(name: str, make: Prepare) -> Prepare:
    def prepare(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        make(folder / name)

    return prepare


# ---- runs whose files are damaged ------------------------------------------------------------

DAMAGES: dict[str, Prepare] = {
    "emptied": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "garbage": lambda file: file.write_bytes(bytes(range(256)) * 9),
    "a brace": lambda file: file.write_bytes(b"{"),
    "deep": lambda file: file.write_bytes(b"[" * 100_000),
    "removed": lambda file: file.unlink(),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}
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
                prepare = _in_place(f"run/{name}", make)
                yield Case(f"{user}, {name} {damage}", words, codes, prepare, needs_run=True)
        for number in ("000001", "000002"):
            yield Case(
                f"{user}, checkpoint {number} removed",
                words,
                (0,),
                lambda folder, n=number: shutil.rmtree(folder / "run" / "checkpoints" / n),
                needs_run=True,
            )
        yield Case(
            f"{user}, no checkpoint",
            words,
            (0,) if user == "resume" else (2,),
            lambda folder: shutil.rmtree(folder / "run" / "checkpoints"),
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
    yield Case("export of points", ("export", "run", "--out", "out"), needs_run=True)
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
        make = _in_place("s.yaml", lambda file: file.write_bytes(settings))
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


def cases() -> list[Case]:
    """All of them, those that are alike side by side."""
    families = (settings_cases, word_cases, file_cases, run_cases, place_cases)
    return [case for family in families for case in family()]
