"""Data sources and the standardisation between a user's units and the model's."""

from __future__ import annotations

from sft_rl.config import DataConfig
from sft_rl.data.dataset import Dataset, load_points

__all__ = ["Dataset", "load_dataset"]


def load_dataset(config: DataConfig) -> Dataset:
    """Load or generate the data a configuration names, points or images.

    Raises:
        UserError: If a file is missing or does not hold what it should.
    """
    if not config.is_images:
        return load_points(config)
    from sft_rl.data.images import load_images  # here, since points need none of it

    return load_images(config)
