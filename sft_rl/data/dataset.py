"""Training data in model units, held-out references in the data's own units."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sft_rl.config import Conditions, DataConfig, Samples
from sft_rl.data.columns import NumberTable, split_off
from sft_rl.data.point_files import read_points
from sft_rl.data.points import draw_points
from sft_rl.data.units import Units
from sft_rl.errors import UserError
from sft_rl.seeding import derive_seed

Array = np.ndarray
D = TypeVar("D", bound="Dataset")
CONSTANT = 64 * np.finfo(np.float64).eps
"""Numbers that differ by so small a share of them differ by rounding."""
LARGEST = 1e100
"""Squares of numbers beyond leave the range of float64 in the metrics."""
MOST_CONDITIONS = 100_000
"""Vectors that a model keeps to draw from."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Real data, and the affine map between its units and the model's.

    Attributes:
        train: Training samples in model units, float32, shape (N, *shape).
        held_out: Real samples for the metrics in the data's units, or None if the source is
            synthetic and gives as many as wanted. Vectors that they are conditional on stand
            behind their coordinates, as :meth:`Units.joined` puts them.
        units: The map to the data's own units, and what samples are.
        config: Where the data came from.
        labels: What the training samples are conditional on: classes, int64, shape (N,), or
            vectors in model units, float32, shape (N, D); None if nothing.
        description: What was read, as rows of a table; nothing of what was drawn.
        embeddings: What a pipeline makes of the samples' captions and, behind them, of the empty
            prompt, float32: ``prompts``, shape (K + 1, tokens, width), and what else its kind has;
            None without captions.
    """

    train: Tensor
    held_out: Array | None
    units: Units
    config: DataConfig
    labels: Tensor | None = None
    description: dict[str, str] = field(default_factory=dict)
    embeddings: dict[str, Tensor] | None = None

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

        With labels, shape (num, D), sample i is drawn from those of the vector ``labels[i]``.
        """
        index = self._drawn_rows(num, generator, labels)
        return self.train[index.to(self.train.device)].to(generator.device)

    def _drawn_rows(self, num: int, generator: torch.Generator, labels: Tensor | None) -> Tensor:
        """Numbers of training samples, of the vectors (num, D) if there are labels."""
        device = generator.device
        if labels is None:
            return torch.randint(len(self.train), (num,), generator=generator, device=device)
        keys, order = self._by_condition
        wanted = _keys(labels.to(keys.device))
        first, last = (torch.searchsorted(keys, wanted, right=right) for right in (False, True))
        assert (last > first).all(), "a vector that no training sample has"
        share = torch.rand(num, generator=generator, device=device).to(keys.device)
        return order[first + (share * (last - first)).long()].to(device)

    @cached_property
    def _by_condition(self) -> tuple[Tensor, Tensor]:
        """Keys of the training samples' vectors, sorted, and whose they are."""
        assert self.labels is not None, "points without vectors have none to be drawn by"
        return tuple(_keys(self.labels).sort(stable=True))  # type: ignore[return-value]

    @property
    def conditions(self) -> Tensor | None:
        """Vectors that a model keeps to draw from, shape (K, D); None without any."""
        kept = self.units.samples.conditions
        return None if kept is None or self.labels is None else self.labels[: kept.num_rows]

    def train_in_units(self, num: int) -> Array:
        """Return the first `num` training samples in the data's own units."""
        vectors = None if self.units.samples.conditions is None else self.labels
        return self.units.joined(self.train[:num], None if vectors is None else vectors[:num])

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


def _keys(vectors: Tensor) -> Tensor:
    """One number for each vector (…, D), equal for equal ones, float64, shape (…)."""
    weights = np.random.default_rng(0).standard_normal(vectors.shape[-1])
    columns = zip(vectors.double().unbind(-1), weights.tolist(), strict=True)
    return torch.stack([column * weight for column, weight in columns]).sum(0)


def load_points(config: DataConfig) -> Dataset:
    """Load or generate the points a configuration names.

    Raises:
        UserError: If a file is missing or does not hold what it should.
    """
    if config.name == "file":
        table = read_points(config.model_copy(update={"columns": config.all_columns}))
        return points_dataset(table, config, source=f"data.path: {config.path}")
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
    given = None
    if config.condition_columns is not None:
        table, given = split_off(table, config.condition_columns, source)
    points = table.values
    order = np.random.default_rng(config.seed).permutation(len(points))
    num_test = max(int(len(points) * config.test_fraction), 2)
    if len(points) - num_test < 2:
        raise UserError(f"{source} has {len(points)} rows, needs at least 4")
    test, rest = order[:num_test], order[num_test:]
    held_out, train = points[test], points[rest]
    shift, spread = _scales(train, table.names, source, varies=config.standardise)
    description = {
        "rows": f"{len(points):,}, {num_test:,} held out",
        "columns": ", ".join(table.names),
        **({} if given is None else {"conditional on": ", ".join(given.names)}),
        **table.notes,
    }
    if copies := _num_copies(points):
        description["repeated rows"] = f"{copies:,}, equal to one before"
    data = _standardised(
        train, held_out, config, shift=shift, spread=spread, description=description
    )
    if given is None:
        return data
    data = with_conditions(data, given, rest, source)
    vectors = data.units.condition_to_model(given.values[test])
    return replace(data, held_out=data.units.beside(held_out, vectors))


def _scales(
    values: Array, names: tuple[str, ...], source: str, *, varies: bool
) -> tuple[Array, Array]:
    """Mean and standard deviation of every column; refuse numbers that have none of use."""
    for name, column in zip(names, values.T, strict=True):
        largest = np.abs(column).max()
        if largest > LARGEST:
            raise UserError(f"{source} has too large numbers in column {name!r}: {largest:.3g}")
        if varies and np.ptp(column) <= CONSTANT * largest:
            raise UserError(f"{source} has a constant column {name!r}, nothing to learn")
    # Columns may have any units. A sum far from 0 would lose digits.
    shift = values[0] + (values - values[0]).mean(axis=0)
    return shift, (values - shift).std(axis=0)


def with_conditions(data: D, given: NumberTable, rows: Array, source: str) -> D:
    """Give training samples the vectors that they are conditional on, standardised, too.

    Args:
        data: The samples.
        given: A vector for each row of their table.
        rows: Those of the training samples.
        source: Where they came from, the beginning of an error.

    Raises:
        UserError: If a column is constant or beyond float64's squares.
    """
    vectors = given.values[rows]
    shift, spread = _scales(vectors, given.names, source, varies=True)
    conditions = Conditions(
        names=given.names,
        shift=tuple(shift.tolist()),
        scale=tuple(spread.tolist()),
        num_rows=min(len(rows), MOST_CONDITIONS),
    )
    units = Units(data.units.samples.model_copy(update={"conditions": conditions}))
    return replace(data, units=units, labels=units.condition_to_model(vectors))


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
