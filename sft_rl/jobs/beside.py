"""Work beside the main thread, on the core that waits."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def beside(work: Callable[[], T]) -> Callable[[], T]:
    """Start some work in a thread; return a function that waits for its result, or its error.

    A program that ends before the work does need not wait for it.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # whatever it is, who asks for the result is told
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future.result
