"""A user's own pictures: found, decoded by all cores into the cache, and mapped into memory."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sft_rl.config import DataConfig
from sft_rl.data.decoding import decoded
from sft_rl.data.picture_files import Encoded, Pictures, files_below, pictures_of_files
from sft_rl.data.picture_tables import ENDINGS, pictures_of_tables
from sft_rl.errors import UserError
from sft_rl.storage.cache import digest
from sft_rl.storage.mapped import cached_pictures
from sft_rl.types import Progress

Array = np.ndarray
T = TypeVar("T")
FORMAT = 2
"""Part of the cache's key; counts changes of the code that give other pixels."""
BESIDE = "txt"
"""Captions in files of that ending, beside the pictures."""
BATCH = 64
"""Encoded pictures that are held at once."""


def find_pictures(config: DataConfig) -> Pictures:
    """Find the pictures at `data.path`: a folder, a zip file or a table of them.

    Raises:
        UserError: If there are none, or what holds them cannot be read.
    """
    root = Path(config.path or "")
    if not root.exists():
        raise UserError(f"data.path: nothing at {root}")
    try:
        files = files_below(root)
        below = root if root.is_dir() else root.parent
        tables = [file for file in files if file.suffix in ENDINGS]
        others = [file for file in files if file not in set(tables)]
        beside = config.captions == BESIDE and not tables
        pictures = pictures_of_files(below, others, captions=beside)
        if tables and pictures.num:
            raise UserError(
                f"data.path: {root} has {pictures.num} pictures and {len(tables)} tables; name one"
            )
        if tables:
            pictures = pictures_of_tables(below, tables, config)
        elif of_table := _of_table(config):
            raise UserError(
                f"data.{of_table}: {root} has no table, got {getattr(config, of_table)}"
            )
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise _unreadable(str(root), error) from error
    if not pictures.num:
        raise UserError(
            f"data.path: no images in {root}; they are pictures, .zip, {' or '.join(ENDINGS)}"
        )
    return pictures


def _of_table(config: DataConfig) -> str | None:
    """A setting that names columns of a table, if one is set."""
    if config.columns is not None:
        return "columns"
    if config.condition_columns is not None:
        return "condition_columns"
    return None if config.captions in (None, BESIDE) else "captions"


def decode_pictures(
    pictures: Pictures, order: Array, config: DataConfig, progress: Progress
) -> tuple[Array, dict[str, str]]:
    """Decode pictures, or find them decoded in the cache.

    Args:
        pictures: Encoded ones.
        order: Which of them comes first, second, …, shape (num,).
        config: Size, colours and crop.
        progress: Is told how many are decoded.

    Returns:
        uint8, shape (num, channels, size, size), mapped into memory; and notes of what had to be
        converted.

    Raises:
        UserError: Naming a picture that cannot be decoded.
    """
    import PIL

    key = {
        "format": FORMAT,
        "pictures": _sha256(pictures),
        "order": digest(order),
        "settings": config.model_dump(include={"image_size", "channels", "crop"}),
        "pillow": PIL.__version__,
    }
    place = np.empty(pictures.num, np.int64)
    place[order] = np.arange(pictures.num)

    decode = partial(_decoded, config=config)

    def fill(images: Array) -> dict[str, int]:
        found: Counter[str] = Counter()
        done = 0
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for batch in _batches(_safely(pictures)):
                for pixels, what in pool.map(decode, batch):
                    images[place[done]] = pixels
                    found.update(what)
                    done += 1
                progress(done, pictures.num, {})
        return dict(found)

    images, found = cached_pictures(key, (pictures.num, *config.image_shape), fill)
    converted = "; ".join(f"{num:,} {what}" for what, num in sorted(found.items()))
    return images, {"converted": converted} if converted else {}


def _sha256(pictures: Pictures) -> str:
    """Hash of the encoded pictures."""
    total = hashlib.sha256()
    for _, content in _safely(pictures):
        total.update(len(content).to_bytes(8, "little"))
        total.update(content)
    return total.hexdigest()


def _safely(pictures: Pictures) -> Encoded:
    """Read pictures; what goes wrong meanwhile is one line."""
    try:
        yield from pictures.read()
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        raise _unreadable("the images", error) from error


def _batches(items: Iterator[T]) -> Iterator[list[T]]:
    while batch := list(islice(items, BATCH)):
        yield batch


def _decoded(encoded: tuple[str, bytes], config: DataConfig) -> tuple[Array, list[str]]:
    name, content = encoded
    try:
        return decoded(content, config)
    except Exception as error:  # whatever a damaged picture makes its decoder raise
        raise _unreadable(f"the image {name}", error) from error


def _unreadable(what: str, error: Any) -> UserError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(f"data.path: cannot read {what}: {reason[0]}")
