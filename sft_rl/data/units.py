"""Between a user's units and the model's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sft_rl.config import Samples
from sft_rl.data.autoencoder import decoded
from sft_rl.data.pictures import tile, to_rgb
from sft_rl.errors import UserError, shortened
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
        with torch.no_grad():
            values = self.in_units(samples if self.samples.latents else samples.cpu()).cpu()
        if self.samples.pixel_max is None:
            return values.numpy()
        return values.round().clamp(0, self.samples.pixel_max).to(torch.uint8).numpy()

    def in_units(self, samples: Tensor) -> Tensor:
        """Turn samples into the data's units, with their gradient; pixels are not rounded."""
        if self.samples.latents is not None:
            samples = decoded(self.samples.latents, samples)
        return samples * self.scale.to(samples.device) + self.shift.to(samples.device)

    def to_model(self, values: Tensor) -> Tensor:
        """Undo :meth:`to_data`, float32."""
        shift, scale = self.shift.to(values.device), self.scale.to(values.device)
        return ((values.to(self._dtype) - shift) / scale).float()

    def condition_to_model(self, vectors: Any) -> Tensor:
        """Turn vectors (D,) or (N, D) of `data.condition_columns` into model units, float32.

        Raises:
            UserError: If the model is conditional on none, or on others.
        """
        known = self.samples.conditions
        if known is None:
            raise UserError("condition: the model is not conditional on vectors; leave it out")
        try:
            values = np.asarray(vectors, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(f"condition: holds no numbers: {shortened(vectors)}") from error
        if values.ndim not in (1, 2) or values.shape[-1] != len(known.names):
            raise UserError(
                f"condition: needs {len(known.names)} numbers ({', '.join(known.names)}), for all "
                f"samples or for each, got shape {values.shape}"
            )
        if not np.isfinite(values).all():
            raise UserError("condition: holds numbers that are not finite")
        return torch.from_numpy((values - known.shift) / known.scale).float()

    def condition_to_data(self, vectors: Tensor) -> Tensor:
        """Undo :meth:`condition_to_model`, float64."""
        known = self.samples.conditions
        assert known is not None, "a model without vectors has no labels that are some"
        scale, shift = (
            vectors.new_tensor(v, dtype=torch.float64) for v in (known.scale, known.shift)
        )
        return vectors * scale + shift

    def joined(self, samples: Tensor, labels: Tensor | None) -> Array:
        """Samples in the data's units as the metrics take them: points with their condition."""
        values = self.to_data(samples)
        if labels is None or not self.samples.num_conditions or self.is_images:
            return values
        return self.beside(values, labels)

    def beside(self, values: Array, vectors: Tensor) -> Array:
        """Put vectors in model units behind points in the data's, scaled to their spread.

        So metrics compare points together with what they are conditional on.
        """
        scaled = vectors.cpu().double().numpy() * np.mean(self.samples.scale)
        return np.concatenate([values, scaled], axis=1)

    @property
    def centre(self) -> Array:
        """The middle of what :meth:`joined` gives, float64: no metric depends on it."""
        num = self.samples.num_conditions
        if not num or self.is_images:
            return np.asarray(self.samples.shift)
        return np.concatenate([np.broadcast_to(self.samples.shift, self.shape), np.zeros(num)])

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
