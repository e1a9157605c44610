"""Work beside the main thread, on the core that waits."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import cache, partial
from threading import Event, Thread
from typing import Protocol, TypeVar

from sft_rl.jobs.clock import Clock
from sft_rl.pretrained.full_step import FullStep
from sft_rl.types import Metrics, Progress

T = TypeVar("T")


class Measure(Protocol):
    """Measures the full-step sampler, and tells of it."""

    def __call__(self, *, progress: Progress) -> FullStep:
        """Measure it."""


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


def measured_beside(measure: Measure, clock: Clock, *, waits: bool) -> Callable[[], FullStep]:
    """Measure the full-step sampler; return what waits for the result, if it is not there yet.

    Args:
        measure: Does it.
        clock: Takes its seconds, and knows who is told of it: how far it is shows only when
            somebody waits for it.
        waits: Whether the learner will wait for workers now and then; it is measured beside that,
            with the same number of threads.
    """
    observer, waited_for = clock.observer, Event()

    def progress(done: int, total: int, metrics: Metrics) -> None:
        if waited_for.is_set():
            observer.progress(done, total, metrics)

    measured: Callable[[], FullStep] = partial(measure, progress=progress)
    if waits:
        measured = beside(measured)

    @cache
    def full_step() -> FullStep:
        with clock.phase("full-step sampler"):
            waited_for.set()
            return measured()

    if not waits:
        full_step()
    return full_step
