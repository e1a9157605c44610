"""Read images from folders, tables and the CIFAR-10 binaries; a bad file is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sft_rl.config import DataConfig
from sft_rl.errors import UserError
from sft_rl.storage.cache import cache_folder

Array = np.ndarray
CIFAR10_BYTES = 1 + 3 * 32 * 32
CIFAR10_TRAIN = [f"data_batch_{i}.bin" for i in range(1, 6)]
CIFAR10_TEST = ["test_batch.bin"]
CIFAR10_CLASSES = 10


@dataclass(frozen=True)
class LabelledImages:
    """Images and, if known, their classes.

    Attributes:
        images: uint8, shape (N, C, H, W).
        labels: int64, shape (N,), or None.
    """

    images: Array
    labels: Array | None

    def __getitem__(self, index: Array) -> LabelledImages:
        labels = None if self.labels is None else self.labels[index]
        return LabelledImages(np.ascontiguousarray(self.images[index]), labels)


def read_cifar10(path: str) -> tuple[LabelledImages, LabelledImages]:
    """Read CIFAR-10's binary version: the training and the test images.

    Raises:
        UserError: Naming a file that is missing or is not of that format.
    """
    return _cifar_files(path, CIFAR10_TRAIN), _cifar_files(path, CIFAR10_TEST)


def _cifar_files(path: str, names: list[str]) -> LabelledImages:
    rows = []
    for name in names:
        file = Path(path) / name
        if not file.is_file():
            raise UserError(
                f"data.path: no file {name} in {path}; CIFAR-10 is read from its binary version "
                "(cifar-10-binary.tar.gz, unpacked)"
            )
        content = np.fromfile(file, np.uint8)
        if not len(content) or len(content) % CIFAR10_BYTES:
            raise UserError(
                f"data.path: {file} has {len(content)} bytes, expected a multiple of "
                f"{CIFAR10_BYTES} (a label and 3x32x32 pixels an image)"
            )
        rows.append(content.reshape(-1, CIFAR10_BYTES))
        if rows[-1][:, 0].max() >= CIFAR10_CLASSES:
            raise UserError(f"data.path: {file} has a label above 9, it is not CIFAR-10's")
    table = np.concatenate(rows)
    return LabelledImages(
        np.ascontiguousarray(table[:, 1:]).reshape(-1, 3, 32, 32), table[:, 0].astype(np.int64)
    )


def read_images(config: DataConfig) -> LabelledImages:
    """Read a folder of pictures, or .parquet or .arrow files with an image column.

    A folder's subfolders, or a column of class labels, give the classes.

    Raises:
        UserError: Naming a file that is missing or cannot be decoded.
    """
    from PIL import Image, UnidentifiedImageError

    table = _table(config.path or "")
    images, labels = [], []
    for row, (name, picture, label) in enumerate(_rows(table, config.path or "")):
        try:
            images.append(_prepared(picture(), config))
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
            where = name or f"row {row} of {config.path}"
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"data.path: cannot read the image {where}: {reason}") from error
        except Image.DecompressionBombError as error:
            raise UserError(f"data.path: {name or f'row {row}'}: {error}") from error
        labels.append(label)
    if not images:
        raise UserError(f"data.path: no images in {config.path}")
    known = np.array(labels, np.int64) if None not in labels else None
    return LabelledImages(np.stack(images), known)


def _table(path: str) -> Any:
    """Open what a path names as a table of HF `datasets`."""
    import datasets

    source = Path(path)
    if not source.exists():
        raise UserError(f"data.path: nothing at {path}")
    paths = [source] if source.is_file() else sorted(source.rglob("*"))
    kinds = {
        kind: [str(f) for f in paths if f.suffix == f".{kind}"] for kind in ("parquet", "arrow")
    }
    datasets.disable_progress_bars()
    cache = str(cache_folder() / "datasets")
    try:
        if kinds["arrow"]:
            parts = [datasets.Dataset.from_file(f) for f in kinds["arrow"]]
            return datasets.concatenate_datasets(parts)
        if kinds["parquet"]:
            files = kinds["parquet"]
            return datasets.load_dataset(
                "parquet", data_files=files, split="train", cache_dir=cache
            )
        if source.is_file():
            raise UserError(
                f"data.path: {path} is no folder of images and ends in {source.suffix!r}, "
                "expected .parquet or .arrow"
            )
        return datasets.load_dataset("imagefolder", data_dir=path, split="train", cache_dir=cache)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes its parser raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"data.path: cannot read {path}: {reason[0]}") from error


def _rows(table: Any, path: str) -> Iterator[tuple[str | None, Any, int | None]]:
    """Yield of each row the file's name, a function that opens the picture, and its class."""
    import datasets

    images = [n for n, f in table.features.items() if isinstance(f, datasets.Image)]
    classes = [n for n, f in table.features.items() if isinstance(f, datasets.ClassLabel)]
    if not images:
        raise UserError(
            f"data.path: no column of {path} holds images; it has {', '.join(table.column_names)}"
        )
    feature = datasets.Image()
    table = table.cast_column(images[0], datasets.Image(decode=False))
    for row in table:
        encoded = row[images[0]]
        label = row[classes[0]] if classes else None
        yield encoded["path"], lambda encoded=encoded: feature.decode_example(encoded), label


def _prepared(picture: Any, config: DataConfig) -> Array:
    """Crop, scale and turn a picture into uint8, shape (channels, size, size)."""
    from PIL import Image

    if config.crop is not None:
        left, top, right, bottom = config.crop
        if not (0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height):
            raise ValueError(
                f"data.crop {list(config.crop)} does not fit into {picture.width}x{picture.height}"
            )
        picture = picture.crop(config.crop)
    if picture.width != picture.height:
        raise ValueError(
            f"it is {picture.width}x{picture.height} pixels, not square; set data.crop"
        )
    picture = picture.convert("RGB" if config.channels == 3 else "L")
    size = config.image_size
    if picture.width != size:
        picture = picture.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=None)
    array = np.asarray(picture)
    return np.ascontiguousarray(array.reshape(size, size, -1).transpose(2, 0, 1))
