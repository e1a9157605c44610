"""Run folders at URLs: a run works in a local copy, and its files go up when they are whole."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from sft_rl.config import ResolvedConfig
from sft_rl.config.files import load_resolved
from sft_rl.errors import UserError
from sft_rl.learning.learner import Learner
from sft_rl.runs.base import BASE
from sft_rl.runs.checkpoints import checkpoints
from sft_rl.runs.folder import RunFolder
from sft_rl.storage import checkpoint
from sft_rl.storage.cache import cache_folder
from sft_rl.storage.urls import Remote, is_url

PARTS = ("config.yaml", "metrics.csv", "summary.json", "checkpoints", "plots", BASE)
"""What a run reads back; whatever else is at the URL is left alone."""
WATCHED = ("samples", "tensorboard")
"""Folders that people look at while a run goes on; they only go up."""


Place = str | Path | Remote
"""Where a run is: a path, a URL, or what reaches it."""


def _remote(place: Place) -> Remote | None:
    """What reaches a URL; none for a path."""
    if isinstance(place, Remote):
        return place
    return Remote(str(place)) if is_url(place) else None


def holds_run(place: Place) -> bool:
    """Whether there is a run at a path or URL."""
    remote = _remote(place)
    return RunFolder.holds_run(Path(str(place))) if remote is None else remote.exists("config.yaml")


def create_run(place: Place, config: ResolvedConfig, *, beside: tuple[str, ...] = ()) -> RunFolder:
    """Make the folder of a new run at a path or URL; see :meth:`RunFolder.create`."""
    remote = _remote(place)
    if remote is None:
        return RunFolder.create(Path(str(place)), config, beside=beside)
    run = StoredRun(remote, config)
    run.begin(beside=beside)
    return run


def open_run(place: Place) -> RunFolder:
    """Open an existing run at a path or URL; see :meth:`RunFolder.open`."""
    remote = _remote(place)
    if remote is None:
        return RunFolder.open(Path(str(place)))
    if not remote.exists("config.yaml"):
        raise UserError(f"run: {remote.url} holds no run (no config.yaml in it)")
    with tempfile.TemporaryDirectory() as folder:
        remote.download(Path(folder), names=("config.yaml",))
        config = load_resolved(f"{folder}/config.yaml")
    return StoredRun(remote, config)


def free_run_path(preset: str, num_steps: int, seed: int) -> Path:
    """Choose a folder under ``runs/`` that no run has taken yet."""
    base = Path("runs") / f"{preset}-T{num_steps}-seed{seed}"
    path, count = base, 1
    while path.exists():
        count += 1
        path = base.with_name(f"{base.name}-{count}")
    return path


class StoredRun(RunFolder):
    """The folder of a run at a URL.

    It is read and written in a temporary copy. A file goes up after it is whole here, a
    checkpoint's manifest after its other files, so that a reader of the URL finds a checkpoint
    whole, or sees that it is not. Processes of one machine are kept apart; object stores have no
    locks for those of several.

    Args:
        remote: The run's folder.
        config: The run's resolved configuration.
        warn: Takes what a person should know.
    """

    def __init__(
        self, remote: Remote, config: ResolvedConfig, *, warn: Callable[[str], None] | None = None
    ) -> None:
        self._copy = tempfile.TemporaryDirectory(prefix="sft-rl-run-")
        path = Path(self._copy.name)
        super().__init__(path, config, **({"warn": warn} if warn else {}))
        self.place = remote.url
        self.remote = remote
        self._uploaded: dict[str, int] = {}
        for name in ("checkpoints", "plots"):
            (path / name).mkdir()
        remote.download(path, names=PARTS)
        self.lock_folder = (
            cache_folder() / "locks" / hashlib.sha256(remote.url.encode()).hexdigest()
        )
        self.lock_folder.mkdir(parents=True, exist_ok=True)

    @property
    def absolute_place(self) -> str:
        """See :attr:`RunFolder.absolute_place`."""
        return self.remote.url

    def _refuse_others_files(self, beside: tuple[str, ...]) -> None:
        if self.remote.holds_but(beside):
            raise UserError(
                f"--out: {self.place} is not empty; choose a new folder, nothing there is "
                "overwritten"
            )

    def _write_config(self) -> None:
        super()._write_config()
        self.remote.upload(self.path, "config.yaml")

    def abandon(self) -> None:
        """See :meth:`RunFolder.abandon`."""
        super().abandon()
        self._follow("config.yaml")
        if not (self.path / BASE).exists():
            self.remote.remove(BASE)

    def keep_base(self, network: nn.Module) -> None:
        """See :meth:`RunFolder.keep_base`."""
        if not (self.path / BASE).exists():
            super().keep_base(network)
            self._upload_checkpoint(BASE)

    def resume(self, config: ResolvedConfig) -> checkpoint.Checkpoint | None:
        """See :meth:`RunFolder.resume`."""
        newest = super().resume(config)
        for name in ("summary.json", "metrics.csv"):  # cut, or not there any more
            self._follow(name)
        return newest

    def take_over(self, config: ResolvedConfig, start: checkpoint.Checkpoint) -> None:
        """See :meth:`RunFolder.take_over`."""
        super().take_over(config, start)
        self.remote.remove("checkpoints")
        self._follow("metrics.csv")

    def note(self, name: str, line: str) -> None:
        """See :meth:`RunFolder.note`."""
        if not (self.path / name).exists():
            self.remote.download(self.path, names=(name,))
        super().note(name, line)
        self.remote.upload(self.path, name)

    def save(self, learner: Learner, *, iteration: int) -> None:
        """See :meth:`RunFolder.save`."""
        super().save(learner, iteration=iteration)
        self.remote.upload(self.path, "metrics.csv")
        kept = {folder.name for folder in checkpoints(self.path)}
        self._upload_checkpoint(f"checkpoints/{checkpoints(self.path)[-1].name}")
        self._upload_watched()
        for old in self.remote.names("checkpoints"):
            if old not in kept:
                self.remote.remove(f"checkpoints/{old}")

    def _upload_checkpoint(self, folder: str) -> None:
        """Upload a checkpoint's files, the manifest last."""
        names = sorted(file.name for file in (self.path / folder).iterdir())
        for name in sorted(names, key=checkpoint.MANIFEST.__eq__):
            self.remote.upload(self.path, f"{folder}/{name}")

    def _upload_watched(self) -> None:
        """Upload what is new, or has grown, of what people look at."""
        for file in sorted(file for name in WATCHED for file in (self.path / name).glob("*")):
            name, size = str(file.relative_to(self.path)), file.stat().st_size
            if self._uploaded.get(name) != size:
                self.remote.upload(self.path, name)
                self._uploaded[name] = size

    def write_summary(self, summary: dict[str, Any]) -> None:
        """See :meth:`RunFolder.write_summary`."""
        for picture in (self.path / "plots").iterdir():
            self.remote.upload(self.path, f"plots/{picture.name}")
        super().write_summary(summary)
        self.remote.upload(self.path, "summary.json")

    def read_summary(self) -> dict[str, Any]:
        """See :meth:`RunFolder.read_summary`; another process may have written it."""
        self.remote.download(self.path, names=("summary.json",))
        return super().read_summary()

    def _follow(self, name: str) -> None:
        if (self.path / name).exists():
            self.remote.upload(self.path, name)
        else:
            self.remote.remove(name)
