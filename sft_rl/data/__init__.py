"""Data sources and the standardisation between a user's units and the model's."""

from __future__ import annotations

from sft_rl.config import Config, DataConfig
from sft_rl.data.dataset import Dataset, load_points
from sft_rl.errors import UserError

__all__ = ["Dataset", "check_labels", "load_dataset"]


def load_dataset(config: DataConfig) -> Dataset:
    """Load or generate the data a configuration names, points or images.

    Raises:
        UserError: If a file is missing or does not hold what it should.
    """
    if not config.is_images:
        return load_points(config)
    from sft_rl.data.images import load_images  # here, since points need none of it

    return load_images(config)


def check_labels(config: Config, data: Dataset) -> None:
    """Refuse a class-conditional model of other classes than the data have.

    Raises:
        UserError: Naming the field that sets the model's classes.
    """
    num_classes = config.model.num_classes
    if not num_classes:
        return
    path = config.pretrained.path
    field = f"pretrained.path: {path}" if path else "model.unet.num_class_embeds: the model"
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
