"""Images as training data: whole numbers in memory, -1..1 for the model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sft_rl.config import DataConfig, Samples
from sft_rl.data.dataset import Dataset
from sft_rl.data.glyphs import cached_glyphs
from sft_rl.data.image_files import LabelledImages, read_cifar10, read_images
from sft_rl.data.units import Units
from sft_rl.errors import UserError

Array = np.ndarray
DIGITS_MAX = 16
PIXEL_MAX = 255
MIN_IMAGES = 4
RANDOM_MAX = 2**62


@dataclass(frozen=True, kw_only=True)
class ImageDataset(Dataset):
    """Images in whole pixel values, which the model sees scaled to -1..1.

    Attributes:
        train: Training images in the data's own units, uint8, shape (N, C, H, W).
        held_out: Real images for the metrics, uint8, shape (M, C, H, W).
        held_out_labels: Classes of the held-out images, int64, shape (M,), or None.
    """

    held_out_labels: Tensor | None

    @property
    def pixel_max(self) -> int:
        """Value of a white pixel."""
        assert self.units.samples.pixel_max is not None
        return self.units.samples.pixel_max

    def batch(self, num: int, generator: torch.Generator, labels: Tensor | None = None) -> Tensor:
        """Draw training images with replacement, mirrored by chance if `data.flip`; -1..1.

        With labels, int64, shape (num,), image i is drawn from those of class ``labels[i]``.
        """
        device = generator.device
        if labels is None:
            index = torch.randint(len(self.train), (num,), generator=generator, device=device)
        else:
            order, counts = (part.to(device) for part in self._by_class)
            share = torch.randint(RANDOM_MAX, (num,), generator=generator, device=device)
            first = counts.cumsum(0) - counts
            index = order[first[labels] + share % counts[labels]]
        images = self.units.to_model(self.train[index.to(self.train.device)].to(device))
        if not self.config.flip:
            return images
        mirrored = torch.rand(num, generator=generator, device=device) < 0.5
        return torch.where(mirrored[:, None, None, None], images.flip(-1), images)

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


def load_images(config: DataConfig) -> ImageDataset:
    """Load the images a configuration names.

    Raises:
        UserError: Naming the file that is missing, unreadable or too small.
    """
    if config.name == "cifar10":
        assert config.path is not None, "build.check asks for it"
        train, held_out = read_cifar10(config.path)
        return _dataset(train, held_out, config, pixel_max=PIXEL_MAX)
    if config.name == "glyphs":
        train, held_out = cached_glyphs(config)
        return _dataset(train, held_out, config, pixel_max=PIXEL_MAX)
    if config.name == "digits":
        everything, pixel_max = _digits(), DIGITS_MAX
    else:
        everything, pixel_max = read_images(config), PIXEL_MAX
    return image_dataset(everything, config, pixel_max=pixel_max)


def image_dataset(
    everything: LabelledImages, config: DataConfig, *, pixel_max: int
) -> ImageDataset:
    """Hold a share of some images out, of labelled ones the same of each class.

    Raises:
        UserError: If they are too few.
    """
    num = len(everything.images)
    if num < MIN_IMAGES:
        raise UserError(
            f"data.path: {config.path or config.name} has {num} images, needs at least {MIN_IMAGES}"
        )
    order = np.random.default_rng(config.seed).permutation(num)
    labels = None if everything.labels is None else everything.labels[order]
    test = _share_of_each_class(num, labels, max(int(num * config.test_fraction), 2))
    train, held_out = everything[order[~test]], everything[order[test]]
    return _dataset(train, held_out, config, pixel_max=pixel_max)


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
    train: LabelledImages, held_out: LabelledImages, config: DataConfig, *, pixel_max: int
) -> ImageDataset:
    half = pixel_max / 2
    digest = hashlib.sha256(f"flip={config.flip}".encode())
    digest.update(train.images.tobytes())
    samples = Samples(
        shape=train.images.shape[1:],
        shift=(half,),
        scale=(half,),
        pixel_max=pixel_max,
        num_classes=0 if train.labels is None else int(train.labels.max()) + 1,
        fingerprint=digest.hexdigest(),
    )
    return ImageDataset(
        train=torch.from_numpy(train.images),
        held_out=held_out.images,
        units=Units(samples),
        config=config,
        labels=None if train.labels is None else torch.from_numpy(train.labels),
        held_out_labels=None if held_out.labels is None else torch.from_numpy(held_out.labels),
    )
