"""Pictures in files, and what is read of them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sft_rl.config import DataConfig
from sft_rl.data import load_dataset
from sft_rl.data.images import ImageDataset

SIZE = 8
RNG = np.random.default_rng(0)


def encoded(pixels: Any = None, kind: str = "png", **options: Any) -> bytes:
    if pixels is None:
        pixels = RNG.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def load(path: Path, **options: Any) -> ImageDataset:
    tree = {"name": "images", "path": str(path), "image_size": SIZE, **options}
    data = load_dataset(DataConfig.model_validate(tree))
    assert isinstance(data, ImageDataset)
    return data


def everything(data: ImageDataset) -> np.ndarray:
    return np.concatenate([data.train.numpy(), data.held_out])


def put(file: Path, content: bytes | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encoded() if content is None else content)
    return file
