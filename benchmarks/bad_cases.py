"""The cases of `benchmarks.bad_inputs`: command lines, and how they must end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

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
    if get_origin(model) in (Union, UnionType):
        numbers = [kind for kind in kinds if int in (kind, *get_args(kind))]
        model = (numbers or kinds)[0]  # of a number or a word a number is right
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
        for name, make in {**_contents(CONTENTS), **NOT_FILES}.items():
            # Nothing but comments is a right, empty, environment.
            connects = (2, 3) if reader == "submit --env" else (2,)
            yield Case(f"{reader}: {name}", words, connects, in_place(place, make))
    for suffix in (".npy", ".csv", ".parquet"):
        words = ("train", "swiss_roll", *TINY, f"data.path=points{suffix}")
        wrong = _contents(("empty", "binary", "nulls", "utf-16", "deep lists", "large"))
        for name, make in {**wrong, **NOT_FILES}.items():
            yield Case(f"points {suffix}: {name}", words, (2,), in_place(f"points{suffix}", make))


def _contents(names: Iterable[str]) -> dict[str, Prepare]:
    return {name: written(CONTENTS[name]) for name in names}


def written(content: bytes) -> Prepare:
    """Write a file."""
    return lambda file: file.write_bytes(content)


def in_place(name: str, make: Prepare) -> Prepare:
    """Make a file of a name."""

    def prepare(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        make(folder / name)

    return prepare
