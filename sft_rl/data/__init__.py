"""Data sources and the standardisation between a user's units and the model's."""

from __future__ import annotations

from typing import Any

import numpy as np

from sft_rl.config import DataConfig
from sft_rl.config.extensions import made_by
from sft_rl.data.dataset import Dataset, load_points, points_dataset
from sft_rl.data.point_files import table_of
from sft_rl.data.units import Units
from sft_rl.errors import UserError
from sft_rl.types import Progress, silent

__all__ = ["Dataset", "Units", "check_labels", "dataset_of", "load_dataset"]


def load_dataset(config: DataConfig, progress: Progress = silent) -> Dataset:
    """Load or generate the data a configuration names, points or images.

    Args:
        config: The settings.
        progress: Is told how many pictures are decoded.

    Raises:
        UserError: If a file is missing or does not hold what it should.
    """
    if config.factory is not None:
        values = made_by("data.factory", config.factory)
        return dataset_of(values, config, source=f"data.factory: {config.factory}()")
    if config.name == "memory":
        raise UserError("data.name: 'memory' is data handed over in Python: give them as data=…")
    if not config.is_images:
        return load_points(config)
    if config.path is None and config.name in ("cifar10", "images"):
        raise UserError(f"data.path: data.name={config.name} needs the path to the images")
    from sft_rl.data.images import load_images  # here, since points need none of it

    return load_images(config, progress)


def dataset_of(values: Any, config: DataConfig, *, source: str = "data: it") -> Dataset:
    """Make a data set of what is in memory.

    Args:
        values: Points (N, dim), or images (N, channels, height, width), uint8, 0..255: an array, a
            tensor or a data frame.
        config: The share that is held out, and the rest of the settings of data.
        source: Where they came from, the beginning of an error.

    Raises:
        UserError: If they are neither, too few, or not finite.
    """
    config = config.model_copy(update={"name": "memory", "path": None})
    array = values.detach().cpu() if hasattr(values, "detach") else values
    if np.ndim(array) != 4:
        read = config.model_copy(update={"columns": config.all_columns})
        return points_dataset(table_of(array, read, source), config, source=source)
    if config.condition_columns is not None:
        raise UserError(
            "data.condition_columns: goes with a table, but images were handed over; write them "
            "into a .parquet file"
        )
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.shape[1] not in (1, 3):
        raise UserError(
            f"{source} has no images, uint8 of shape (N, 1 or 3, height, width), but "
            f"{array.dtype} {array.shape}"
        )
    from sft_rl.data.image_files import LabelledImages
    from sft_rl.data.images import PIXEL_MAX, image_dataset

    return image_dataset(LabelledImages(array, None), config, pixel_max=PIXEL_MAX)


def check_labels(data: Dataset, *, num_classes: int, field: str) -> None:
    """Refuse a model of `num_classes` classes, or of none, for data that have others.

    Raises:
        UserError: Beginning with `field`, what sets the model's classes.
    """
    if not num_classes:
        return
    if data.labels is None:
        raise UserError(
            f"{field} is conditional on {num_classes} classes, but the data have no labels"
        )
    counts = data.labels.bincount().tolist()
    if len(counts) != num_classes or not all(counts):
        raise UserError(
            f"{field} is conditional on {num_classes} classes, but the training images have "
            f"labels of {sum(count > 0 for count in counts)}, up to {len(counts) - 1}"
        )
