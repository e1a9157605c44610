"""Training data in model units, held-out references in the data's own units."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sft_rl.config import DataConfig, Samples
from sft_rl.data.points import draw_points, read_points
from sft_rl.data.units import Units
from sft_rl.errors import UserError
from sft_rl.seeding import derive_seed

Array = np.ndarray


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
    """

    train: Tensor
    held_out: Array | None
    units: Units
    config: DataConfig
    labels: Tensor | None = None

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
        assert config.path is not None
        return points_dataset(read_points(config.path), config, source=f"data.path: {config.path}")
    seed = derive_seed(config.seed, "train") % 2**32
    train = draw_points(config.name, config.num_points, config.noise, seed)
    # A synthetic shape keeps its proportions.
    return _standardised(train, None, config, spread=train.std(keepdims=True)[0])


def points_dataset(points: Array, config: DataConfig, *, source: str) -> Dataset:
    """Split a user's points (N, dim), float32, and standardise them.

    Args:
        points: All of them.
        config: The share that is held out, and the seed of the split.
        source: Where they came from, the beginning of an error.

    Raises:
        UserError: If they are too few or a column is constant.
    """
    order = np.random.default_rng(config.seed).permutation(len(points))
    num_test = max(int(len(points) * config.test_fraction), 2)
    if len(points) - num_test < 2:
        raise UserError(f"{source} has {len(points)} rows, needs at least 4")
    held_out, train = points[order[:num_test]], points[order[num_test:]]
    spread = train.std(axis=0)  # its columns may have any units
    if config.standardise and (spread == 0).any():
        raise UserError(f"{source} has a constant column, nothing to learn")
    return _standardised(train, held_out, config, spread=spread)


def _standardised(
    train: Array, held_out: Array | None, config: DataConfig, *, spread: Array
) -> Dataset:
    shift, scale = np.zeros(1, np.float32), np.ones(1, np.float32)
    if config.standardise:
        shift, scale = train.mean(axis=0), spread
    samples = Samples(
        shape=train.shape[1:],
        shift=tuple(shift.tolist()),
        scale=tuple(scale.tolist()),
        fingerprint=hashlib.sha256(train.tobytes()).hexdigest(),
    )
    return Dataset(
        train=torch.from_numpy((train - shift) / scale),
        held_out=held_out,
        units=Units(samples),
        config=config,
    )
