"""The command's streams and signals: a reader that leaves, a closed or full output, Ctrl-C."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO

IMPORTING = "<frozen importlib"
"""Where Python's own code of imports is from."""


class Outlet(io.FileIO):
    """An output that nobody may be reading any more: what cannot be written is dropped.

    Attributes:
        error: Why the first thing could not be written.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, or drop once that has failed; a run does not end with its spectators."""
        if self.error is None:
            try:
                return super().write(data) or 0
            except OSError as error:
                self.error = error
        return len(data)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Let stdout and stderr take everything inside a ``with`` block, in any encoding.

    Closed descriptors become /dev/null, so that no file of the run gets their numbers. Characters
    that a terminal cannot show are written as escapes. Streams that a program has put in place of
    its own are left as they are.

    Raises:
        OSError: At the end, if output was lost, but not to a reader that had enough.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    before = sys.stdout, sys.stderr
    outlets = []
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None or stream is getattr(sys, f"__{name}__"):
            outlets.append(Outlet(number, "w", closefd=False))
            setattr(sys, name, _text(outlets[-1], stream))
    leaving: SystemExit | None = None
    try:
        yield
    except SystemExit as left:  # with a help that may be lost, too
        leaving = left
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
    errors = [outlet.error for outlet in outlets if outlet.error is not None]
    lost = [error for error in errors if not isinstance(error, BrokenPipeError)]
    if lost and not (leaving and leaving.code):
        raise lost[0]
    if leaving is not None:
        raise leaving


def _text(outlet: Outlet, like: TextIO | None) -> TextIO:
    return io.TextIOWrapper(
        io.BufferedWriter(outlet),
        encoding=like.encoding if like else "utf-8",
        errors="backslashreplace",
        line_buffering=outlet.isatty() or outlet.fileno() == 2,
    )


@contextmanager
def imports_left_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process in the midst of an import, where an exception would be lost.

    Libraries in C, and Python's own making of classes, turn it into errors of theirs. Nothing has
    been begun then. Anywhere else it raises KeyboardInterrupt, as ever.
    """
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    at = frame
    while at is not None:
        if at.f_code.co_filename.startswith(IMPORTING):
            os.write(2, b"sft-rl: interrupted\n")
            os._exit(130)
        at = at.f_back
    signal.default_int_handler(number, frame)
