"""Training data in model units, held-out references in the data's own units."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sft_rl.config import DataConfig, Samples
from sft_rl.data.columns import NumberTable
from sft_rl.data.point_files import read_points
from sft_rl.data.points import draw_points
from sft_rl.data.units import Units
from sft_rl.errors import UserError
from sft_rl.seeding import derive_seed

Array = np.ndarray
CONSTANT = 64 * np.finfo(np.float64).eps
"""Numbers that differ by so small a share of them differ by rounding."""
LARGEST = 1e100
"""Squares of numbers beyond leave the range of float64 in the metrics."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Real data, and the affine map between its units and the model's.

    Attributes:
        train: Training samples in model units, float32, shape (N, *shape).
        held_out: Real samples for the metrics in the data's units, or None if the source is
            synthetic and gives as many as wanted.
        units: The map to the data's own units, and what samples are.
        config: Where the data came from.
        labels: Classes of the training samples, int64, shape (N,), or None.
        description: What was read, as rows of a table; nothing of what was drawn.
    """

    train: Tensor
    held_out: Array | None
    units: Units
    config: DataConfig
    labels: Tensor | None = None
    description: dict[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.units.shape

    @property
    def fingerprint(self) -> str:
        """Hash that changes with the training data."""
        return self.units.samples.fingerprint

    def batch(self, num: int, generator: torch.Generator, labels: Tensor | None = None) -> Tensor:
        """Draw training samples with replacement, model units, shape (num, *shape).

        With labels, int64, shape (num,), sample i is drawn from those of class ``labels[i]``.
        """
        assert labels is None, "points have no labels"
        index = torch.randint(len(self.train), (num,), generator=generator, device=generator.device)
        return self.train[index.to(self.train.device)].to(generator.device)

    def train_in_units(self, num: int) -> Array:
        """Return the first `num` training samples in the data's own units."""
        return self.units.to_data(self.train[:num])

    def real(self, num: int, seed: int, draw: int) -> Array:
        """Return real data that the model was not trained on, in the data's own units.

        Args:
            num: How many; a file may hold fewer for each draw.
            seed: Seed of the draw.
            draw: 0 is the reference; others are independent of it and of each other, but for a
                file, whose held-out rows are split into two halves.
        """
        if self.held_out is None:
            # Plain scikit-learn states, so that anybody can repeat the reference.
            return draw_points(self.config.name, num, self.config.noise, seed + draw)
        half = len(self.held_out) // 2
        rows = self.held_out[:half] if draw == 0 else self.held_out[half:]
        return rows[:num]


def load_points(config: DataConfig) -> Dataset:
    """Load or generate the points a configuration names.

    Raises:
        UserError: If a file is missing or does not hold what it should.
    """
    if config.name == "file":
        return points_dataset(read_points(config), config, source=f"data.path: {config.path}")
    seed = derive_seed(config.seed, "train") % 2**32
    train = draw_points(config.name, config.num_points, config.noise, seed)
    # A synthetic shape keeps its proportions.
    shift, spread = train.mean(axis=0), train.std(keepdims=True)[0]
    return _standardised(train, None, config, shift=shift, spread=spread)


def points_dataset(table: NumberTable, config: DataConfig, *, source: str) -> Dataset:
    """Split a user's points and standardise them.

    Args:
        table: All of them.
        config: The share that is held out, and the seed of the split.
        source: Where they came from, the beginning of an error.

    Raises:
        UserError: If they are too few, or a column is constant or beyond float64's squares.
    """
    points = table.values
    order = np.random.default_rng(config.seed).permutation(len(points))
    num_test = max(int(len(points) * config.test_fraction), 2)
    if len(points) - num_test < 2:
        raise UserError(f"{source} has {len(points)} rows, needs at least 4")
    held_out, train = points[order[:num_test]], points[order[num_test:]]
    for name, column in zip(table.names, train.T, strict=True):
        largest = np.abs(column).max()
        if largest > LARGEST:
            raise UserError(f"{source} has too large numbers in column {name!r}: {largest:.3g}")
        if config.standardise and np.ptp(column) <= CONSTANT * largest:
            raise UserError(f"{source} has a constant column {name!r}, nothing to learn")
    # Its columns may have any units. A sum far from 0 would lose digits.
    shift = train[0] + (train - train[0]).mean(axis=0)
    spread = (train - shift).std(axis=0)
    description = {
        "rows": f"{len(points):,}, {num_test:,} held out",
        "columns": ", ".join(table.names),
        **table.notes,
    }
    if copies := _num_copies(points):
        description["repeated rows"] = f"{copies:,}, equal to one before"
    return _standardised(
        train, held_out, config, shift=shift, spread=spread, description=description
    )


def _num_copies(points: Array) -> int:
    """How many rows are equal to one before."""
    import pandas as pd  # here, since it is slow to import

    return int(pd.DataFrame(points).duplicated().sum())


def _standardised(
    train: Array,
    held_out: Array | None,
    config: DataConfig,
    *,
    shift: Array,
    spread: Array,
    description: dict[str, str] | None = None,
) -> Dataset:
    if not config.standardise:
        shift, spread = np.zeros(1, train.dtype), np.ones(1, train.dtype)
    samples = Samples(
        shape=train.shape[1:],
        shift=tuple(shift.tolist()),
        scale=tuple(spread.tolist()),
        fingerprint=hashlib.sha256(train.tobytes()).hexdigest(),
    )
    return Dataset(
        train=torch.from_numpy(((train - shift) / spread).astype(np.float32)),
        held_out=held_out,
        units=Units(samples),
        config=config,
        description=description or {},
    )
