"""Run folders at URLs: a run works in a local copy, and its files go up when they are whole.

Arrow's own file systems (``s3://``, ``gs://``, ``hdfs://``, ``file://``) need nothing installed;
others (``memory://``, ``az://`` …) come through fsspec.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
from pyarrow import fs as arrow_fs

from sft_rl.config import ResolvedConfig
from sft_rl.errors import RunFailed, UserError
from sft_rl.learning.learner import Learner
from sft_rl.config.files import load_resolved
from sft_rl.storage import checkpoint
from sft_rl.storage.cache import cache_folder
from sft_rl.storage.files import saving
from sft_rl.runs.folder import RunFolder

PARTS = ("config.yaml", "metrics.csv", "summary.json", "checkpoints", "plots")
"""What a run reads back; whatever else is at the URL is left alone."""
WATCHED = ("samples", "tensorboard")
"""Folders that people look at while a run goes on; they only go up."""


def is_url(place: str | Path) -> bool:
    """Whether a run's place is a URL, and not a path."""
    return isinstance(place, str) and "://" in place


def reach(place: str) -> tuple[arrow_fs.FileSystem, str]:
    """Return the file system that a path or URL is on, and its path there.

    Raises:
        OSError: It cannot be reached.
        ValueError: The URL is wrong.
        ImportError: Nothing installed knows such URLs.
    """
    if not is_url(place):
        return arrow_fs.LocalFileSystem(), str(Path(place).expanduser())
    try:
        file_system, path = arrow_fs.FileSystem.from_uri(place)
        return file_system, path.rstrip("/")
    except pa.ArrowInvalid:  # not one of Arrow's own
        file_system, path = fsspec.core.url_to_fs(place)
        return arrow_fs.PyFileSystem(arrow_fs.FSSpecHandler(file_system)), path


def holds_run(place: str | Path) -> bool:
    """Whether there is a run at a path or URL."""
    if is_url(place):
        return Remote(str(place)).exists("config.yaml")
    return RunFolder.holds_run(Path(place))


def create_run(place: str | Path, config: ResolvedConfig) -> RunFolder:
    """Make the folder of a new run at a path or URL; see :meth:`RunFolder.create`."""
    if not is_url(place):
        return RunFolder.create(Path(place), config)
    run = StoredRun(Remote(str(place)), config)
    run.begin()
    return run


def open_run(place: str | Path) -> RunFolder:
    """Open an existing run at a path or URL; see :meth:`RunFolder.open`."""
    if not is_url(place):
        return RunFolder.open(Path(place))
    remote = Remote(str(place))
    if not remote.exists("config.yaml"):
        raise UserError(f"run: {place} holds no run (no config.yaml in it)")
    with tempfile.TemporaryDirectory() as folder:
        remote.download(Path(folder), parts=("config.yaml",))
        config = load_resolved(f"{folder}/config.yaml")
    return StoredRun(remote, config)


class Remote:
    """A folder at a URL.

    Args:
        url: Its address.

    Raises:
        UserError: If nothing installed can reach such an address.
    """

    def __init__(self, url: str) -> None:
        if "@" in url:
            raise UserError("--out: a URL is written to logs; give credentials by the environment")
        self.url = url.rstrip("/")
        try:
            self._fs, self._root = reach(self.url)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"--out: cannot use {url}: {str(error).splitlines()[0]}") from error

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder of a name."""
        with self._reaching():
            kind = self._fs.get_file_info(f"{self._root}/{name}").type
        return bool(kind != arrow_fs.FileType.NotFound)

    def names(self, folder: str) -> list[str]:
        """Names of the folders in a folder."""
        selector = arrow_fs.FileSelector(f"{self._root}/{folder}", allow_not_found=True)
        with self._reaching():
            found = self._fs.get_file_info(selector)
        return [info.base_name for info in found if info.type == arrow_fs.FileType.Directory]

    def upload(self, folder: Path, name: str) -> None:
        """Copy a file of a local folder to the same place here, whole.

        Raises:
            SaveError: If that fails.
        """
        content = (folder / name).read_bytes()
        with saving(f"{self.url}/{name}", len(content)):
            target = f"{self._root}/{name}"
            self._fs.create_dir(target.rpartition("/")[0], recursive=True)
            with self._fs.open_output_stream(target) as stream:
                stream.write(content)

    def download(self, folder: Path, *, parts: tuple[str, ...] = PARTS) -> None:
        """Copy what is here of a run into a local folder."""
        with self._reaching():
            for part in parts:
                info = self._fs.get_file_info(f"{self._root}/{part}")
                files = [info]
                if info.type == arrow_fs.FileType.Directory:
                    selector = arrow_fs.FileSelector(info.path, recursive=True)
                    files = self._fs.get_file_info(selector)
                for file in files:
                    if file.type == arrow_fs.FileType.File:
                        target = folder / Path(file.path).relative_to(self._root)
                        target.parent.mkdir(parents=True, exist_ok=True)
                        with self._fs.open_input_stream(file.path) as stream:
                            target.write_bytes(stream.read())

    def remove(self, name: str) -> None:
        """Remove a file or a folder, if it is there."""
        with self._reaching():
            info = self._fs.get_file_info(f"{self._root}/{name}")
            if info.type == arrow_fs.FileType.Directory:
                self._fs.delete_dir(info.path)
            elif info.type == arrow_fs.FileType.File:
                self._fs.delete_file(info.path)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = str(error).splitlines()[0]
            raise RunFailed(f"cannot reach {self.url}: {why}") from error


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
        remote.download(path)
        self.lock_folder = (
            cache_folder() / "locks" / hashlib.sha256(remote.url.encode()).hexdigest()
        )
        self.lock_folder.mkdir(parents=True, exist_ok=True)

    @property
    def absolute_place(self) -> str:
        """See :attr:`RunFolder.absolute_place`."""
        return self.remote.url

    def _write_config(self) -> None:
        super()._write_config()
        self.remote.upload(self.path, "config.yaml")

    def resume(self, config: ResolvedConfig) -> checkpoint.Checkpoint | None:
        """See :meth:`RunFolder.resume`."""
        newest = super().resume(config)
        for name in ("summary.json", "metrics.csv"):  # cut, or not there any more
            self._follow(name)
        return newest

    def save(self, learner: Learner, *, iteration: int) -> None:
        """See :meth:`RunFolder.save`."""
        super().save(learner, iteration=iteration)
        self.remote.upload(self.path, "metrics.csv")
        kept = {folder.name for folder in self._checkpoints()}
        newest = self.path / "checkpoints" / max(kept)
        names = [file.name for file in newest.iterdir() if file.name != checkpoint.MANIFEST]
        for name in [*sorted(names), checkpoint.MANIFEST]:
            self.remote.upload(self.path, f"checkpoints/{newest.name}/{name}")
        self._upload_watched()
        for old in self.remote.names("checkpoints"):
            if old not in kept:
                self.remote.remove(f"checkpoints/{old}")

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
        self.remote.download(self.path, parts=("summary.json",))
        return super().read_summary()

    def _follow(self, name: str) -> None:
        if (self.path / name).exists():
            self.remote.upload(self.path, name)
        else:
            self.remote.remove(name)
