"""Folders at URLs.

Arrow's own file systems (``s3://``, ``gs://``, ``hdfs://``, ``file://``) need nothing installed;
others (``memory://``, ``az://`` …) come through fsspec, and Arrow wraps them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path

import fsspec
import pyarrow as pa
from pyarrow import fs as arrow_fs

from sft_rl.errors import RunFailed, UserError
from sft_rl.storage.files import saving
from sft_rl.storage.secrets import holds_secret

LOCAL = arrow_fs.LocalFileSystem()


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL, and not a path."""
    return isinstance(place, str) and "://" in place


def why_lost(url: str) -> str | None:
    """Why the next process does not find what is written to a URL; None if it does."""
    scheme, _, path = url.partition("://")
    if scheme == "memory":
        return "it ends with the process; give a folder, or storage such as s3://bucket/runs"
    if scheme in ("file", "local") and not path.startswith("/"):
        return "allowed: an absolute path, as file:///shared/runs"
    return None


def reach(place: str) -> tuple[arrow_fs.FileSystem, str]:
    """Return the file system that a path or URL is on, and its path there.

    Raises:
        OSError: It cannot be reached.
        ValueError: The URL is wrong.
        ImportError: Nothing installed knows such URLs.
    """
    if not is_url(place):
        return LOCAL, str(Path(place).expanduser())
    try:
        file_system, path = arrow_fs.FileSystem.from_uri(place)
        return file_system, path.rstrip("/")
    except pa.ArrowInvalid:  # not one of Arrow's own
        file_system, path = fsspec.core.url_to_fs(place)
        return arrow_fs.PyFileSystem(arrow_fs.FSSpecHandler(file_system)), path


class Remote:
    """A folder at a URL.

    Args:
        url: Its address.
        file_system: What it is on, where that is known: the path is what follows ``://``.

    Raises:
        UserError: If nothing installed can reach such an address.
    """

    def __init__(self, url: str, file_system: arrow_fs.FileSystem | None = None) -> None:
        if "@" in url or holds_secret(url):
            raise UserError("--out: a URL is written to logs; give credentials by the environment")
        self.url = url.rstrip("/")
        if file_system is not None:
            self._fs, self._root = file_system, self.url.partition("://")[2]
            return
        try:
            self._fs, self._root = reach(self.url)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"--out: cannot use {url}: {str(error).splitlines()[0]}") from error

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder of a name."""
        return bool(self._type(name) != arrow_fs.FileType.NotFound)

    def holds_but(self, beside: Iterable[str]) -> bool:
        """Whether anything is here but files of these names."""
        return any(info.base_name not in beside for info in self._entries(self._root))

    def names(self, folder: str = "") -> list[str]:
        """Names of the folders in a folder."""
        found = self._entries(f"{self._root}/{folder}".rstrip("/"))
        return [info.base_name for info in found if info.type == arrow_fs.FileType.Directory]

    def files(self) -> list[str]:
        """Names of the files that are directly here."""
        found = self._entries(self._root)
        return [info.base_name for info in found if info.type == arrow_fs.FileType.File]

    def _entries(self, path: str) -> list[arrow_fs.FileInfo]:
        with self._reaching():
            return list(self._fs.get_file_info(arrow_fs.FileSelector(path, allow_not_found=True)))

    def inside(self, folder: str) -> Remote:
        """A folder in this one."""
        inner = copy(self)
        inner.url, inner._root = f"{self.url}/{folder}", f"{self._root}/{folder}"
        return inner

    @property
    def on(self) -> tuple[arrow_fs.FileSystem, str]:
        """The file system, and the path there."""
        return self._fs, self._root

    def upload(self, folder: Path, name: str) -> None:
        """Copy a file of a local folder to the same place here, whole.

        Raises:
            SaveError: If that fails.
        """
        source, target = folder / name, f"{self._root}/{name}"
        with saving(f"{self.url}/{name}", source.stat().st_size):
            self._fs.create_dir(target.rpartition("/")[0], recursive=True)
            arrow_fs.copy_files(str(source), target, LOCAL, self._fs)

    def download(self, folder: Path, *, names: Iterable[str]) -> None:
        """Copy files and folders that are here into a local folder; others are passed over."""
        for name in filter(self.exists, names):
            if self._type(name) == arrow_fs.FileType.Directory:
                (folder / name).mkdir(exist_ok=True)  # which Arrow leaves to others
            with self._reaching():
                arrow_fs.copy_files(f"{self._root}/{name}", str(folder / name), self._fs, LOCAL)

    def remove(self, name: str) -> None:
        """Remove a file or a folder, if it is there."""
        path, kind = f"{self._root}/{name}", self._type(name)
        with self._reaching():
            if kind == arrow_fs.FileType.Directory:
                self._fs.delete_dir(path)
            elif kind == arrow_fs.FileType.File:
                self._fs.delete_file(path)

    def _type(self, name: str) -> arrow_fs.FileType:
        with self._reaching():
            return self._fs.get_file_info(f"{self._root}/{name}").type

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = str(error).splitlines()[0]
            raise RunFailed(f"cannot reach {self.url}: {why}") from error
