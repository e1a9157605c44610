"""Training data in model units, held-out references in the data's own units."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sft_rl.config import DataConfig
from sft_rl.data.points import draw_points, read_points
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
        shift: Mean of the training data, broadcastable to *shape.
        scale: Standard deviation of the training data, broadcastable to *shape.
        fingerprint: Hash that changes with the data.
        config: Where the data came from.
        labels: Classes of the training samples, int64, shape (N,), or None.
    """

    train: Tensor
    held_out: Array | None
    shift: Tensor
    scale: Tensor
    fingerprint: str
    config: DataConfig
    labels: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train.shape[1:])

    def batch(self, num: int, generator: torch.Generator, labels: Tensor | None = None) -> Tensor:
        """Draw training samples with replacement, model units, shape (num, *shape).

        With labels, int64, shape (num,), sample i is drawn from those of class ``labels[i]``.
        """
        assert labels is None, "points have no labels"
        index = torch.randint(len(self.train), (num,), generator=generator, device=generator.device)
        return self.train[index.to(self.train.device)].to(generator.device)

    def train_in_units(self, num: int) -> Array:
        """Return the first `num` training samples in the data's own units."""
        return self.to_units(self.train[:num])

    def to_units(self, samples: Tensor) -> Array:
        """Turn samples from model units into the data's own, float32."""
        return (samples.cpu() * self.scale + self.shift).numpy()

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
        points = read_points(config.path)
        order = np.random.default_rng(config.seed).permutation(len(points))
        num_test = max(int(len(points) * config.test_fraction), 2)
        if len(points) - num_test < 2:
            raise UserError(f"data.path: {config.path} has {len(points)} rows, needs at least 4")
        held_out, train = points[order[:num_test]], points[order[num_test:]]
    else:
        source = derive_seed(config.seed, "train") % 2**32
        train = draw_points(config.name, config.num_points, config.noise, source)
        held_out = None
    shift, scale = np.zeros(1, np.float32), np.ones(1, np.float32)
    if config.standardise:
        shift = train.mean(axis=0)
        # A file's columns may have any units; a synthetic shape keeps its proportions.
        scale = train.std(axis=0) if config.name == "file" else train.std(keepdims=True)[0]
        if (scale == 0).any():
            raise UserError(f"data.path: a column of {config.path} is constant, nothing to learn")
    return Dataset(
        train=torch.from_numpy((train - shift) / scale),
        held_out=held_out,
        shift=torch.from_numpy(shift),
        scale=torch.from_numpy(scale),
        fingerprint=hashlib.sha256(train.tobytes()).hexdigest(),
        config=config,
    )
