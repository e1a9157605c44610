"""How well pictures go with their prompts, by CLIP (Radford et al., 2021; Hessel et al., 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sft_rl.data.pictures import to_rgb
from sft_rl.errors import UserError, first_line
from sft_rl.metrics.features import file_hash

Array = np.ndarray
CHUNK = 100
WEIGHTS = "model.safetensors"


class Clip:
    """Embeds pictures and prompts, as vectors of length 1.

    Args:
        path: Folder of a ``CLIPModel`` of transformers with its tokenizer and image processor.
        pixel_max: Value of a white pixel in the pictures.

    Raises:
        UserError: If the folder or the library is missing. Nothing is downloaded or unpickled.
    """

    def __init__(self, path: str, *, pixel_max: int) -> None:
        for name in ("config.json", WEIGHTS, "preprocessor_config.json", "tokenizer_config.json"):
            if not (Path(path) / name).is_file():
                raise UserError(f"metrics.clip_path: no {name} in {path}; it is never downloaded")
        try:
            import transformers
        except ImportError as error:
            raise UserError(
                "metrics.clip_path: needs transformers, which cannot be imported; "
                "pip install 'sft-rl[text]'"
            ) from error
        self._library: Any = transformers
        self.path = path
        self.pixel_max = pixel_max

    @property
    def facts(self) -> dict[str, str | int | float]:
        """Which weights."""
        return {"clip_sha256": file_hash(f"{self.path}/{WEIGHTS}", f"{self.path}/config.json")}

    @cached_property
    def _parts(self) -> tuple[Any, Any, Any]:
        """The network, and what prepares texts and pictures for it."""
        try:
            network = self._library.CLIPModel.from_pretrained(
                self.path, local_files_only=True, use_safetensors=True
            )
            kinds = (self._library.CLIPTokenizer, self._library.CLIPImageProcessor)
            texts, pictures = (k.from_pretrained(self.path, local_files_only=True) for k in kinds)
        except Exception as error:  # whatever a damaged file makes its reader raise
            raise UserError(
                f"metrics.clip_path: cannot read {self.path}: {first_line(error)}"
            ) from error
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return network.eval().to(device), texts, pictures

    @torch.inference_mode()
    def __call__(self, images: Array, prompts: Sequence[str]) -> tuple[Array, Array]:
        """Embed images (N, C, H, W), uint8, and their N prompts, each as float64 (N, dim)."""
        network, tokenizer, processor = self._parts
        length = network.config.text_config.max_position_embeddings
        parts = []
        for start in range(0, len(images), CHUNK):
            rgb = to_rgb(images[start : start + CHUNK], 0, self.pixel_max)
            pixels = processor(list(rgb), return_tensors="pt", input_data_format="channels_last")
            texts = tokenizer(
                list(prompts[start : start + CHUNK]),
                padding=True,
                truncation=True,
                max_length=length,
                return_tensors="pt",
            )
            out = network(**texts.to(network.device), **pixels.to(network.device))
            parts.append([e.double().cpu().numpy() for e in (out.image_embeds, out.text_embeds)])
        pictures, asked = (np.concatenate(part) for part in zip(*parts, strict=True))
        return pictures, asked


def clip_score(pictures: Array, prompts: Array) -> Array:
    """100 times the cosine of embeddings (N, dim) of length 1, 0 if it is negative; shape (N,)."""
    return np.asarray(100.0 * np.maximum((pictures * prompts).sum(axis=1), 0.0))
