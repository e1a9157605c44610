"""What points are measured by: neighbours for sharpness, transport for where the mass lies."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch

from sft_rl.config import MetricsConfig
from sft_rl.data import Dataset
from sft_rl.metrics.distances import (
    Array,
    directions,
    earth_movers,
    flat,
    mmd,
    sliced_wasserstein,
)
from sft_rl.metrics.estimates import Measured
from sft_rl.metrics.excess import batch_size, excess, sorted_batches
from sft_rl.metrics.neighbours import NEIGHBOURS, precision_recall, share_error, two_sample
from sft_rl.storage.cache import cached
from sft_rl.storage.checkpoint import Checkpoint
from sft_rl.types import Metrics

FORMAT = 2
REFERENCE_FACTOR = 16
"""Real points of a synthetic source for one generated: their noise adds 3 % to the error."""
NUM_GROUPS = 16
"""Means of the reference's batches that are kept: enough to delete one by one."""
REFERENCE_DRAW = 1000
"""Far from the draws that the other metrics take."""
NUM_EXACT_DRAWS = 2
MIN_MMD = 2
"""Fewer points have no pairs, of whose distances the unbiased estimate is a mean."""


class Points:
    """Two-sample test, precision, recall, excess and sliced Wasserstein distance, and others.

    Args:
        name: The metric that leads.
        config: Numbers of points and projections, and the seed.
        data: Its held-out points, or its source.
    """

    key = f"points-{FORMAT}"
    unused = frozenset[str]()

    def __init__(self, name: str, config: MetricsConfig, data: Dataset) -> None:
        self.name = name
        self.config = config
        self.data = data
        self.num_more = config.num_excess

    def num_generated(self, reference: Array) -> int:
        """As many as there are real ones."""
        return len(reference)

    def distance(self, real: Array, generated: Array) -> float:
        """The metric that leads."""
        return self._watched(self._centred(real), self._centred(generated[: len(real)]))[self.name]

    def watching(self, real: Array) -> Callable[[Array], Metrics]:
        """Two-sample test, precision, recall and sliced distance against one set of points."""
        points = self._centred(real)
        return lambda generated: self._watched(points, self._centred(generated))

    def _watched(self, real: Array, generated: Array) -> Metrics:
        if not np.isfinite(generated).all():  # the alarm asks what a run has come to
            names = ("two_sample", "precision", "recall", "sliced_wasserstein")
            return dict.fromkeys(names, float("nan"))
        precision, recall = precision_recall(real, generated)
        return {
            "two_sample": two_sample(real, generated)[0],
            "precision": precision,
            "recall": recall,
            "sliced_wasserstein": self._sliced(real, generated),
        }

    def measured(self, real: Array, generated: Array) -> Measured:
        """Every metric of the same samples; the excess of all, the others of the first ones.

        Args:
            real: The reference, (N, dim).
            generated: At least as many.
        """
        real, first = self._centred(real), self._centred(generated[: len(real)])
        numbers = self._compared(real, first) | self._exact(real, first)
        return Measured(numbers | self.excess(generated))

    def _compared(self, real: Array, generated: Array) -> Metrics:
        """Metrics that are quick for all points, with their standard errors."""
        accuracy, error = two_sample(real, generated)
        precision, recall = precision_recall(real, generated)
        return {
            "two_sample": accuracy,
            "two_sample_se": error,
            "precision": precision,
            "precision_se": share_error(precision, len(generated)),
            "recall": recall,
            "recall_se": share_error(recall, len(real)),
            "sliced_wasserstein": self._sliced(real, generated),
        }

    def _exact(self, real: Array, generated: Array) -> Metrics:
        real, generated = real[: self.config.num_exact], generated[: self.config.num_exact]
        numbers = {"earth_movers": earth_movers(real, generated)}
        if min(len(real), len(generated)) >= MIN_MMD and (real != real[0]).any():
            numbers["mmd"] = mmd(real, generated)
        return numbers

    def _sliced(self, real: Array, generated: Array) -> float:
        config = self.config
        return sliced_wasserstein(
            real, generated, num_projections=config.num_projections, seed=config.seed
        )

    def excess(self, generated: Array) -> Metrics:
        """Excess distance of points (N, dim) and its error; nothing if data are too few for it."""
        size = self._batch_size
        if size < 1:
            return {}
        batches = sorted_batches(self._centred(generated), self._directions, size=size)
        distance, error = excess(self._real_batches, batches)
        return {"excess": distance, "excess_se": error}

    @cached_property
    def _directions(self) -> Array:
        dim = len(self.data.units.centre)
        return directions(dim, self.config.num_projections, self.config.seed)

    @property
    def _batch_size(self) -> int:
        held_out = () if self.data.held_out is None else (len(self.data.held_out),)
        return batch_size(self.config.num_samples, self.config.num_excess, *held_out)

    @cached_property
    def _real_batches(self) -> Array:
        """Sorted projections of real points: all that are held out, or many drawn once."""
        if self.data.held_out is not None:
            return sorted_batches(
                self._centred(self.data.held_out), self._directions, size=self._batch_size
            )
        data, config = self.data.config, self.config
        key = {
            "format": FORMAT,
            "data": [data.name, data.noise],
            "seed": config.seed,
            "num_projections": config.num_projections,
            "batch": self._batch_size,
            "num": [self._num_reference, NUM_GROUPS],
            "draw": REFERENCE_DRAW,
        }

        def draw() -> Checkpoint:
            points = self._centred(self.data.real(self._num_reference, config.seed, REFERENCE_DRAW))
            batches = sorted_batches(
                points, self._directions, size=self._batch_size, num_groups=NUM_GROUPS
            )
            return Checkpoint({"quantiles": {"groups": torch.from_numpy(batches)}}, {})

        entry, _ = cached("quantiles", key, draw)
        return entry.tensors["quantiles"]["groups"].numpy()

    @property
    def _num_reference(self) -> int:
        if self.data.held_out is not None:
            return len(self.data.held_out)
        return REFERENCE_FACTOR * self.config.num_excess

    def _centred(self, points: Array) -> Array:
        """Points (N, dim) around the middle of the data, float64.

        No distance depends on the origin, but squares of numbers far from it would lose digits.
        """
        return np.asarray(flat(points) - self.data.units.centre)

    def noise_floors(self, draws: list[Array]) -> Metrics:
        """Every metric of real points; the exact ones of two draws; the excess is 0 by nature."""
        real, *others = (self._centred(draw) for draw in draws)
        rows = []
        for index, other in enumerate(others):
            num = min(len(real), len(other))  # halves of a file may differ by one
            row = self._compared(real[:num], other[:num])
            if index < NUM_EXACT_DRAWS:
                row |= self._exact(real, other)
            rows.append({k: v for k, v in row.items() if not k.endswith("_se")})
        floors: Metrics = {"excess": 0.0}
        for name in rows[0]:
            values = [row[name] for row in rows if name in row]
            floors[name] = float(np.mean(values))
            if len(values) > NUM_EXACT_DRAWS:
                floors[f"{name}_sd"] = float(np.std(values, ddof=1))
        return floors

    def protocol(self, reference: Array) -> dict[str, str | int | float]:
        """Counts of points, projections and neighbours."""
        return {
            "num_samples": len(reference),
            "num_projections": self.config.num_projections,
            "num_exact": min(self.config.num_exact, len(reference)),
            "neighbours": NEIGHBOURS,
            "num_excess": max(self.config.num_excess, len(reference)),
            "excess_batch": self._batch_size,
            "num_excess_reference": self._num_reference,
        }
