"""Locks between processes: a dead process leaves none behind."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems say that have no locks."""


class Locked(Exception):
    """Another process has the lock; the text says which."""


@contextmanager
def lock(
    file: Path,
    *,
    patience_s: float = 0.0,
    waiting: Callable[[str], None] = lambda owner: None,
    warn: Callable[[str], None] = warnings.warn,
) -> Iterator[None]:
    """Keep other processes out of a ``with`` block.

    Args:
        file: File of the lock; it is made, and stays.
        patience_s: How long to wait for another process; infinity waits until it ends or dies.
        waiting: Is told whom it waits for.
        warn: Is told if the file system has no locks; the block then runs without.

    Raises:
        Locked: If another process has the lock for longer.
        OSError: If the file cannot be opened.
    """
    with file.open("a+") as stream:
        deadline, told = time.monotonic() + patience_s, False
        while not _locked(stream, warn):
            stream.seek(0)
            owner = stream.read().strip() or "another process"
            if time.monotonic() >= deadline:
                raise Locked(owner)
            if not told:
                waiting(owner)
                told = True
            time.sleep(0.1)  # flock itself waits for ever or not at all
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
        try:
            yield
        finally:  # closing alone would leave it to a process that is being forked right now
            _unlock(stream)


def share(stream: IO[Any]) -> None:
    """Mark an open file as used, for as long as it, or a memory map of it, is there."""
    try:
        fcntl.flock(stream, fcntl.LOCK_SH)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


@contextmanager
def unused(file: Path) -> Iterator[bool]:
    """Whether no living process marks a file as used; none does so in the ``with`` block.

    A file system without locks cannot say: then it is used.
    """
    with file.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def _locked(stream: IO[str], warn: Callable[[str], None]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        warn(
            f"the file system of {stream.name} has no locks ({error.strerror}): see that only one "
            "process writes there"
        )
    return True


def _unlock(stream: IO[str]) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_UN)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
