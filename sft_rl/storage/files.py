"""Files that are whole or not there, and one line for people when they cannot be written."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sft_rl.errors import RunFailed, UserError

NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
"""What file systems say whose folders cannot be synced."""


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


def read_regular(file: Path) -> bytes:
    """Content of a regular file; a pipe or a device could go on for ever.

    Raises:
        OSError: If it cannot be read, or is something else.
    """
    with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(file))
        return stream.read()


def replace_file(file: Path, content: bytes) -> None:
    """Write a file aside, sync it and rename it into its place.

    Raises:
        SaveError: If that fails; what stood there is then untouched.
    """
    aside = aside_of(file)
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
        old = aside_of(target)
        target.rename(old)
        source.rename(target)
        shutil.rmtree(old)
    else:
        source.rename(target)
    sync(target.parent)


def aside_of(path: Path) -> Path:
    """A name beside a path that no other process, and no other thread, takes."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


@contextmanager
def new_file(file: Path) -> Iterator[BinaryIO]:
    """Open a file that people asked for, refusing to overwrite; it is whole or not there.

    Raises:
        UserError: If the file is there or cannot be made.
        SaveError: If it cannot be written to its end.
    """
    try:
        stream = file.open("xb")
    except FileExistsError as error:
        raise UserError(f"--out: {file} exists already, choose another name") from error
    except OSError as error:
        raise UserError(f"--out: cannot write {file}: {error.strerror}") from error
    try:
        with saving(file), stream:
            yield stream
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def check_unused(folder: Path, *, leftovers: tuple[str, ...] = ()) -> None:
    """Refuse a folder that holds anybody's files.

    Args:
        folder: Where something new is to be written; it need not be there.
        leftovers: Files that do not count: a process that died early has left them.

    Raises:
        UserError: Naming a file.
    """
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    other = next((path for path in files if path.name not in leftovers), None)
    if other is not None:
        raise UserError(
            f"--out: {folder} is not empty, it holds {other.relative_to(folder)}; choose a new "
            "folder, nothing there is overwritten"
        )


def write_synced(file: Path, content: bytes) -> None:
    """Write a file and return when the disk has it."""
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync(path: Path) -> None:
    """Return when the disk has a file, or the names in a folder.

    Some file systems cannot say when they have a folder's names; that is warned of.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC or not path.is_dir():
            raise
        warnings.warn(
            f"the file system of {path} does not sync folders ({error.strerror}): files may be "
            "lost if the machine fails",
            stacklevel=2,
        )
    finally:
        os.close(descriptor)


def _free(path: Path | str) -> str:
    """How many bytes are free where a path is, or would be."""
    if isinstance(path, str):
        return ""
    there = next(folder for folder in path.absolute().parents if folder.exists())
    return f", {shutil.disk_usage(there).free} free"
