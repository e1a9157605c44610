"""A run's numbers as metrics of Ray, which its nodes export to Prometheus."""

from __future__ import annotations

import math
import re

from ray.util.metrics import Counter, Gauge, Histogram

from sft_rl.learning.protocols import Observer, PassesOn
from sft_rl.types import Metrics

PREFIX = "sft_rl_"
TAGS = ("run", "preset")
SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Bounds of the histograms of an iteration's seconds."""
HISTOGRAMS = ("seconds", "seconds_waiting")


class RayMetrics(PassesOn):
    """An observer that also sets Ray's metrics, and passes on what it is told.

    Every number of a fine-tuning iteration, and of an evaluation, is a gauge ``sft_rl_NAME`` with
    the tags `run` and `preset`; its seconds are histograms, too, and iterations are counted.

    Args:
        observer: Is told all of it.
        run: Name of the run.
        preset: Its preset.
    """

    def __init__(self, observer: Observer, *, run: str, preset: str) -> None:
        super().__init__(observer)
        self.tags = {"run": run, "preset": preset}
        self._is_fine_tuning = False
        self._gauges: dict[str, Gauge] = {}
        self._iterations = Counter(f"{PREFIX}iterations", "Iterations of fine-tuning", TAGS)
        self._histograms = {
            name: Histogram(f"{PREFIX}iteration_{name}", f"An iteration's {name}", SECONDS, TAGS)
            for name in HISTOGRAMS
        }

    def phase(self, name: str) -> None:
        """Pass it on."""
        self._is_fine_tuning = name == "fine-tuning"
        super().phase(name)

    def progress(self, done: int, total: int, metrics: Metrics) -> None:
        """Set what was measured, pass it on."""
        if self._is_fine_tuning:
            self._iterations.inc(1, self.tags)
            for name, value in metrics.items():
                if math.isfinite(value):
                    self._gauge(name).set(value, self.tags)
            for name in HISTOGRAMS:
                if name in metrics:
                    self._histograms[name].observe(metrics[name], self.tags)
        super().progress(done, total, metrics)

    def _gauge(self, name: str) -> Gauge:
        name = re.sub(r"\W", "_", name)
        if name not in self._gauges:
            self._gauges[name] = Gauge(PREFIX + name, name.replace("_", " "), TAGS)
        return self._gauges[name]


class WorkerMetrics:
    """What one rollout worker has drawn.

    Args:
        worker: The worker's name, a tag.
    """

    def __init__(self, worker: str) -> None:
        self.tags = {"worker": worker}
        self._drawn = Counter(f"{PREFIX}worker_trajectories", "Trajectories drawn", ("worker",))
        self._seconds = Counter(f"{PREFIX}worker_seconds", "Seconds spent drawing", ("worker",))

    def drawn(self, num: int, seconds: float) -> None:
        """Count some trajectories that took some seconds."""
        self._drawn.inc(num, self.tags)
        self._seconds.inc(max(seconds, 1e-9), self.tags)
