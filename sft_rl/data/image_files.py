"""Images with their classes, and CIFAR-10's binaries."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sft_rl.errors import UserError

Array = np.ndarray
CIFAR10_BYTES = 1 + 3 * 32 * 32
CIFAR10_TRAIN = [f"data_batch_{i}.bin" for i in range(1, 6)]
CIFAR10_TEST = ["test_batch.bin"]
CIFAR10_CLASSES = 10


@dataclass(frozen=True)
class LabelledImages:
    """Images, those for training first, and what is known of them.

    Attributes:
        images: uint8, shape (N, C, H, W).
        labels: Their classes, int64, shape (N,), or None.
        classes: Names of the classes; numbers if there are none.
        notes: What was found out about them, a line each by its name.
    """

    images: Array
    labels: Array | None
    classes: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)


def read_cifar10(path: str) -> tuple[LabelledImages, int]:
    """Read CIFAR-10's binary version: the training images, then the test images.

    Returns:
        All of them, and how many are for training.

    Raises:
        UserError: Naming a file that is missing or is not of that format.
    """
    files = [_cifar_file(Path(path) / name) for name in CIFAR10_TRAIN + CIFAR10_TEST]
    num = [size // CIFAR10_BYTES for _, size in files]
    images, labels = np.empty((sum(num), 3, 32, 32), np.uint8), np.empty(sum(num), np.int64)
    end = 0
    for file, _ in files:
        table = np.fromfile(file, np.uint8).reshape(-1, CIFAR10_BYTES)
        begin, end = end, end + len(table)
        images[begin:end], labels[begin:end] = table[:, 1:].reshape(-1, 3, 32, 32), table[:, 0]
        if labels[begin:end].max() >= CIFAR10_CLASSES:
            raise UserError(f"data.path: {file} has a label above 9, it is not CIFAR-10's")
    return LabelledImages(images, labels), sum(num[: len(CIFAR10_TRAIN)])


def _cifar_file(file: Path) -> tuple[Path, int]:
    """A file and its size, which says that it is one of CIFAR-10's."""
    if not file.is_file():
        raise UserError(
            f"data.path: no file {file.name} in {file.parent}; CIFAR-10 is read from its binary "
            "version (cifar-10-binary.tar.gz, unpacked)"
        )
    size = file.stat().st_size
    if not size or size % CIFAR10_BYTES:
        raise UserError(
            f"data.path: {file} has {size} bytes, expected a multiple of "
            f"{CIFAR10_BYTES} (a label and 3x32x32 pixels an image)"
        )
    return file, size
