"""How long the phases of a run take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from sft_rl.learning.protocols import Observer


class Clock:
    """Seconds by phase; tells the observer when a phase begins."""

    def __init__(self, started: float, observer: Observer) -> None:
        self.started = started
        self.observer = observer
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        begun = time.perf_counter()
        self.observer.phase(name)
        yield
        self.seconds[name] = round(time.perf_counter() - begun, 2)

    def total(self) -> dict[str, float]:
        """Seconds since the start, and of each phase."""
        return {"total": round(time.perf_counter() - self.started, 2), **self.seconds}
