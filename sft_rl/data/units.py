"""Between a user's units and the model's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sft_rl.config import Samples
from sft_rl.data.pictures import tile, to_rgb
from sft_rl.errors import UserError
from sft_rl.storage.files import new_file

Array = np.ndarray


@dataclass(frozen=True)
class Units:
    """The affine map from model units to the data's own: ``x * scale + shift``.

    Attributes:
        samples: What samples are.
    """

    samples: Samples

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.samples.shape

    @property
    def is_images(self) -> bool:
        """Whether samples are images, whose pixels are whole numbers."""
        return self.samples.pixel_max is not None

    @cached_property
    def shift(self) -> Tensor:
        """Broadcastable to a sample, float64 of points, float32 of images."""
        return torch.tensor(self.samples.shift, dtype=self._dtype)

    @cached_property
    def scale(self) -> Tensor:
        """Broadcastable to a sample, of the same type."""
        return torch.tensor(self.samples.scale, dtype=self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        """Points may lie far from 0 and close together, beyond the digits of a float32."""
        return torch.float32 if self.is_images else torch.float64

    def to_data(self, samples: Tensor) -> Array:
        """Turn samples (..., *shape) from model units into the data's own.

        Returns:
            float64; of images pixel values, uint8, cut to their range.
        """
        values = samples.cpu() * self.scale + self.shift
        if self.samples.pixel_max is None:
            return values.numpy()
        return values.round().clamp(0, self.samples.pixel_max).to(torch.uint8).numpy()

    def to_model(self, values: Tensor) -> Tensor:
        """Undo :meth:`to_data`, float32."""
        shift, scale = self.shift.to(values.device), self.scale.to(values.device)
        return ((values.to(self._dtype) - shift) / scale).float()

    def write(self, file: Path, values: Array) -> None:
        """Write samples in the data's units into a new file: .npy; .csv of points, .png of images.

        Raises:
            UserError: If the file is there, cannot be written, or has another ending.
        """
        endings = (".npy", ".png") if self.is_images else (".npy", ".csv")
        if file.suffix not in endings:
            raise UserError(
                f"--out: {file} ends in {file.suffix!r}, expected {' or '.join(endings)}"
            )
        with new_file(file) as stream:
            if file.suffix == ".npy":
                np.save(stream, values)
            elif file.suffix == ".csv":
                import pandas as pd

                pd.DataFrame(values).add_prefix("x").to_csv(stream, index=False)
            else:
                from PIL import Image

                assert self.samples.pixel_max is not None
                pictures = to_rgb(values, 0, self.samples.pixel_max)
                picture = tile(pictures, columns=math.ceil(math.sqrt(len(values))))
                Image.fromarray(picture).save(stream, format="png")
