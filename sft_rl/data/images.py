"""Images as training data: whole numbers in memory, -1..1 for the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sft_rl.config import DataConfig, Samples
from sft_rl.data.dataset import Dataset, with_conditions
from sft_rl.data.glyphs import cached_glyphs
from sft_rl.data.image_files import LabelledImages, read_cifar10
from sft_rl.data.own_pictures import decode_pictures, find_pictures
from sft_rl.data.units import Units
from sft_rl.errors import UserError
from sft_rl.storage.mapped import sha256_of
from sft_rl.types import Progress, silent

Array = np.ndarray
DIGITS_MAX = 16
PIXEL_MAX = 255
MIN_IMAGES = 4
CLASSES_SHOWN = 20
RANDOM_MAX = 2**62


@dataclass(frozen=True, kw_only=True)
class ImageDataset(Dataset):
    """Images in whole pixel values, which the model sees scaled to -1..1.

    Attributes:
        train: Training images in the data's own units, uint8, shape (N, C, H, W).
        held_out: Real images for the metrics, uint8, shape (M, C, H, W).
        held_out_labels: Classes of the held-out images, int64, shape (M,), or None.
        classes: Names of the classes, where they have any.
    """

    held_out_labels: Tensor | None
    classes: tuple[str, ...] = ()

    @property
    def pixel_max(self) -> int:
        """Value of a white pixel."""
        assert self.units.samples.pixel_max is not None
        return self.units.samples.pixel_max

    @property
    def picture_shape(self) -> tuple[int, ...]:
        """Shape of a picture, (C, H, W), which a model of latents does not see."""
        return tuple(self.train.shape[1:])

    def batch(self, num: int, generator: torch.Generator, labels: Tensor | None = None) -> Tensor:
        """Draw training images with replacement, mirrored by chance if `data.flip`; -1..1.

        With labels image i is drawn from those of class ``labels[i]``, int64, shape (num,), or of
        that vector, float32, shape (num, D).
        """
        images = self.as_seen(self._drawn_rows(num, generator, labels))
        if not self.config.flip:
            return images
        mirrored = torch.rand(num, generator=generator, device=generator.device) < 0.5
        return torch.where(mirrored[:, None, None, None], images.flip(-1), images)

    def _drawn_rows(self, num: int, generator: torch.Generator, labels: Tensor | None) -> Tensor:
        if labels is None or labels.is_floating_point():
            return super()._drawn_rows(num, generator, labels)
        device = generator.device
        order, counts = (part.to(device) for part in self._by_class)
        share = torch.randint(RANDOM_MAX, (num,), generator=generator, device=device)
        first = counts.cumsum(0) - counts
        return order[first[labels] + share % counts[labels]]

    def as_seen(self, index: Tensor) -> Tensor:
        """Some training images as the model sees them, on the index's device."""
        return self.units.to_model(self.train[index.to(self.train.device)].to(index.device))

    @cached_property
    def _by_class(self) -> tuple[Tensor, Tensor]:
        """Rows of the training images, class by class, and how many there are of each."""
        assert self.labels is not None, "check_labels asks for them"
        return self.labels.argsort(stable=True), self.labels.bincount()

    def train_in_units(self, num: int) -> Array:
        """Return the first `num` training images in pixel values."""
        return self.train[:num].numpy()

    def real(self, num: int, seed: int, draw: int) -> Array:
        """Return real images: the held-out ones (draw 0), the training ones (any other)."""
        assert self.held_out is not None
        return self.held_out[:num] if draw == 0 else self.train_in_units(num)


def load_images(config: DataConfig, progress: Progress = silent) -> ImageDataset:
    """Load the images a configuration names.

    Args:
        config: The settings.
        progress: Is told how many are decoded.

    Raises:
        UserError: Naming the file that is missing, unreadable or too small.
    """
    if config.name == "cifar10":
        assert config.path is not None, "build.check asks for it"
        images, num_train = read_cifar10(config.path)
        return _dataset(images, num_train, config, pixel_max=PIXEL_MAX)
    if config.name == "glyphs":
        images, num_train = cached_glyphs(config, progress)
        return _dataset(images, num_train, config, pixel_max=PIXEL_MAX)
    if config.name == "digits":
        return image_dataset(_digits(), config, pixel_max=DIGITS_MAX)
    pictures = find_pictures(config)
    order, num_train = _split(pictures.num, pictures.labels, config)
    decoded, notes = decode_pictures(pictures, order, config, progress)
    labels = None if pictures.labels is None else pictures.labels[order]
    images = LabelledImages(decoded, labels, pictures.classes, pictures.notes | notes)
    data = _dataset(images, num_train, config, pixel_max=PIXEL_MAX)
    if pictures.given is None:
        return data
    return with_conditions(data, pictures.given, order[:num_train], f"data.path: {config.path}")


def image_dataset(
    everything: LabelledImages, config: DataConfig, *, pixel_max: int
) -> ImageDataset:
    """Hold a share of some images out, of labelled ones the same of each class.

    Raises:
        UserError: If they are too few.
    """
    labels = everything.labels
    order, num_train = _split(len(everything.images), labels, config)
    labels = None if labels is None else labels[order]
    ordered = replace(everything, images=everything.images[order], labels=labels)
    return _dataset(ordered, num_train, config, pixel_max=pixel_max)


def _split(num: int, labels: Array | None, config: DataConfig) -> tuple[Array, int]:
    """Shuffle images, those for training first.

    Returns:
        Their order, shape (num,), and how many are for training.
    """
    if num < MIN_IMAGES:
        raise UserError(
            f"data.path: {config.path or config.name} has {num} images, needs at least {MIN_IMAGES}"
        )
    order = np.random.default_rng(config.seed).permutation(num)
    num_test = max(int(num * config.test_fraction), 2)
    test = _share_of_each_class(num, None if labels is None else labels[order], num_test)
    return np.concatenate([order[~test], order[test]]), num - num_test


def _share_of_each_class(total: int, labels: Array | None, num: int) -> Array:
    """Mark `num` of all images, bool, shape (total,): by class, every so many-th."""
    by_class = np.arange(total) if labels is None else np.argsort(labels, kind="stable")
    marked = np.zeros(total, dtype=bool)
    marked[by_class[np.arange(num) * total // num]] = True
    return marked


def _digits() -> LabelledImages:
    """Load the 1,797 handwritten digits of 8x8 pixels, 0..16, that ship with scikit-learn."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return LabelledImages(digits.images.astype(np.uint8)[:, None], digits.target.astype(np.int64))


def _dataset(
    images: LabelledImages, num_train: int, config: DataConfig, *, pixel_max: int
) -> ImageDataset:
    half = pixel_max / 2
    train, held_out = images.images[:num_train], images.images[num_train:]
    labels = None if images.labels is None else torch.from_numpy(images.labels)
    samples = Samples(
        shape=train.shape[1:],
        shift=(half,),
        scale=(half,),
        pixel_max=pixel_max,
        num_classes=0 if labels is None else int(labels[:num_train].max()) + 1,
        fingerprint=sha256_of(train, f"flip={config.flip}".encode()),
    )
    return ImageDataset(
        train=torch.from_numpy(train),
        held_out=held_out,
        units=Units(samples),
        config=config,
        labels=None if labels is None else labels[:num_train],
        held_out_labels=None if labels is None else labels[num_train:],
        classes=images.classes,
        description=_description(images, num_train),
    )


def _description(images: LabelledImages, num_train: int) -> dict[str, str]:
    """Rows of a table: how many images, how many of which class, and what was noted."""
    num = len(images.images)
    rows = {"images": f"{num:,}, {num - num_train:,} held out"}
    if images.labels is not None:
        counts = np.bincount(images.labels, minlength=len(images.classes)).tolist()
        names = images.classes or tuple(str(i) for i in range(len(counts)))
        each = [f"{name}: {count:,}" for name, count in zip(names, counts, strict=True)]
        more = f" and {len(each) - CLASSES_SHOWN:,} more" if len(each) > CLASSES_SHOWN else ""
        rows["classes"] = ", ".join(each[:CLASSES_SHOWN]) + more
    return rows | images.notes
