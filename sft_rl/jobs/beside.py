"""Work beside the main thread, on the core that waits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache, partial
from threading import Event, Thread
from typing import TypeVar

from torch import nn

from sft_rl.config import ResolvedConfig
from sft_rl.jobs.clock import Clock
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.pretrained.full_step import FullStep
from sft_rl.runs.parts import measured_full_step
from sft_rl.types import Metrics

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


def full_step_of(
    config: ResolvedConfig, network: nn.Module, evaluator: Evaluator, clock: Clock
) -> Callable[[], FullStep]:
    """Measure the full-step sampler; return what waits for the result, if it is not there yet.

    Where the learner waits for workers now and then it is measured beside that, with the same
    number of threads; how far that is shows only when somebody waits for it.
    """
    observer, has_workers, waited_for = clock.observer, config.rollout.num_workers > 0, Event()

    def progress(done: int, total: int, metrics: Metrics) -> None:
        if waited_for.is_set():
            observer.progress(done, total, metrics)

    measure: Callable[[], FullStep] = partial(
        measured_full_step,
        config,
        copy.deepcopy(network),  # the network itself goes on to be fine-tuned
        evaluator,
        warn=observer.warn,
        progress=progress,
    )
    if has_workers:
        measure = beside(measure)

    @cache
    def full_step() -> FullStep:
        with clock.phase("full-step sampler"):
            waited_for.set()
            return measure()

    if not has_workers:
        full_step()
    return full_step
