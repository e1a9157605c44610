"""Files that are whole or not there, and one line for people when they cannot be written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sft_rl.errors import RunFailed


class SaveError(RunFailed):
    """A file could not be written: no space, no permission, a read-only disk."""


@contextmanager
def saving(path: Path | str, num_bytes: int | None = None) -> Iterator[None]:
    """Say which path could not be written, and how much room it needed.

    Args:
        path: What is being written, a URL if it is a string.
        num_bytes: Its size, if it is known.

    Raises:
        SaveError: In place of the operating system's error.
    """
    try:
        yield
    except OSError as error:
        room = "" if num_bytes is None else f" ({num_bytes} bytes needed{_free(path)})"
        why = error.strerror or str(error).splitlines()[0]
        raise SaveError(
            f"cannot save {path}: {why}{room}; what was saved before is kept"
        ) from error


def replace_file(file: Path, content: bytes) -> None:
    """Write a file aside, sync it and rename it into its place.

    Raises:
        SaveError: If that fails; what stood there is then untouched.
    """
    aside = file.with_name(f".{file.name}.tmp")
    with saving(file, len(content)):
        try:
            write_synced(aside, content)
            aside.replace(file)
            sync(file.parent)
        except OSError:
            aside.unlink(missing_ok=True)  # before the room is told that was free
            raise


def replace_folder(source: Path, target: Path) -> None:
    """Rename a folder into its place; a folder that stands there makes way first."""
    if target.exists():
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        target.rename(old)
        source.rename(target)
        shutil.rmtree(old)
    else:
        source.rename(target)
    sync(target.parent)


def write_synced(file: Path, content: bytes) -> None:
    """Write a file and return when the disk has it."""
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync(path: Path) -> None:
    """Return when the disk has a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(path: Path | str) -> str:
    """How many bytes are free where a path is, or would be."""
    if isinstance(path, str):
        return ""
    there = next(folder for folder in path.absolute().parents if folder.exists())
    return f", {shutil.disk_usage(there).free} free"
