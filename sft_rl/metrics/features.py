"""What images are compared by: features of a small classifier of ours, of Inception, of DINOv2."""

from __future__ import annotations

import hashlib
import json
import pickle
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from sft_rl.data.images import ImageDataset
from sft_rl.errors import UserError
from sft_rl.metrics.classifier import NUM_FEATURES, Classifier, cached_classifier, classifier_key
from sft_rl.metrics.frechet import Gaussian
from sft_rl.metrics.neighbours import precision_recall
from sft_rl.storage.cache import hash_of
from sft_rl.types import Metrics

Array = np.ndarray
INCEPTION_FEATURES = "2048"
CHUNK = 100
NEIGHBOURS = 3
DINO_SIZE = 224
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's channels, pixels 0..1, by which DINOv2 is fed."""


class Features(Protocol):
    """Maps images to vectors.

    Attributes:
        names: What the Fréchet and the kernel distance are called in them; "" leaves one out.
    """

    names: tuple[str, str]

    @property
    def key(self) -> str:
        """Changes with the features."""

    @property
    def facts(self) -> dict[str, str | int | float]:
        """What a reader needs to know of them."""

    def __call__(self, images: Array) -> Array:
        """Map images (N, C, H, W), uint8, to float64 (N, dim)."""

    def published(self, reference: Gaussian, real: Array, generated: Array) -> Metrics:
        """Metrics as others publish them, beside the distances or in place of their values.

        Args:
            reference: The Gaussian of the real features, or one that others fitted.
            real: Features (M, dim).
            generated: Features (N, dim).
        """


class ClassifierFeatures:
    """Of a small classifier that is trained on the same labelled images.

    Raises:
        UserError: If the images have no labels.
    """

    names = ("frechet", "kernel")

    def __init__(self, data: ImageDataset) -> None:
        if data.held_out_labels is None:
            raise UserError(
                "metrics.distance: 'frechet' needs labelled images, in a subfolder or with a label "
                "for each class; use sliced_wasserstein"
            )
        self.data = data

    @property
    def key(self) -> str:
        """Hash of what determines the classifier."""
        return hash_of(classifier_key(self.data))

    @cached_property
    def _trained(self) -> tuple[Classifier, float]:
        return cached_classifier(self.data)

    @property
    def facts(self) -> dict[str, str | int | float]:
        """How good the classifier is."""
        return {
            "features": f"{NUM_FEATURES} of a classifier of the training images",
            "classifier_accuracy": round(self._trained[1], 4),
        }

    def __call__(self, images: Array) -> Array:
        """Map images (N, C, H, W), uint8, to float64 (N, 32)."""
        return self._trained[0].embed(torch.from_numpy(images), self.data.units)

    def classes(self, images: Array) -> Array:
        """The class that it takes each image for, int64, shape (N,)."""
        return self._trained[0].classes_of(torch.from_numpy(images), self.data.units)

    def published(self, reference: Gaussian, real: Array, generated: Array) -> Metrics:
        """Precision and recall."""
        shares = precision_recall(real, generated, neighbours=NEIGHBOURS)
        return dict(zip(("precision", "recall"), shares, strict=True))


class InceptionFeatures:
    """The 2048 pooled features of FID, by torch-fidelity from a local file of weights.

    Args:
        path: The file ``weights-inception-2015-12-05-6726825d.pth`` of torch-fidelity.
        pixel_max: Value of a white pixel in the images; Inception's is 255.

    Raises:
        UserError: If the file or the library is missing. Nothing is downloaded.
    """

    names = ("fid", "kid")

    def __init__(self, path: str | None, *, pixel_max: int) -> None:
        if path is None:
            raise UserError(
                "metrics.inception_path: 'fid' needs the file of Inception's weights; get "
                "weights-inception-2015-12-05-6726825d.pth from torch-fidelity's releases"
            )
        if not Path(path).is_file():
            raise UserError(f"metrics.inception_path: no file at {path}; it is never downloaded")
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise UserError(
                f"metrics.inception_path: FID needs torch-fidelity, which cannot be imported "
                f"({error}); pip install 'sft-rl[fid]', or use metrics.distance=sliced_wasserstein"
            ) from error
        self._extractor = FeatureExtractorInceptionV3
        self.path = path
        self.pixel_max = pixel_max

    @cached_property
    def key(self) -> str:
        """Hash of the weights."""
        return file_hash(self.path)

    @property
    def facts(self) -> dict[str, str | int | float]:
        """Which extractor."""
        return {"features": "Inception v3, 2048, torch-fidelity", "inception_sha256": self.key}

    @cached_property
    def _network(self) -> Any:
        # torch-fidelity unpickles the file: see first that there are only tensors in it.
        try:
            torch.load(self.path, map_location="cpu", weights_only=True)
            network = self._extractor(
                "inception-v3-compat",
                [INCEPTION_FEATURES],
                feature_extractor_weights_path=self.path,
            )
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"metrics.inception_path: cannot read {self.path}: {reason}") from error
        return network.to("cuda" if torch.cuda.is_available() else "cpu")

    @torch.inference_mode()
    def __call__(self, images: Array) -> Array:
        """Map images (N, C, H, W), uint8, to float64 (N, 2048); grey ones as three channels."""
        device = next(self._network.parameters()).device
        parts = [
            self._network(_rgb(part, self.pixel_max).contiguous().to(device))[0].double().cpu()
            for part in torch.split(torch.from_numpy(images), CHUNK)
        ]
        return torch.cat(parts).numpy()

    def published(self, reference: Gaussian, real: Array, generated: Array) -> Metrics:
        """FID, KID, precision and recall by torch-fidelity."""
        from sft_rl.metrics.fidelity import published

        return published(reference, real, generated)


class DinoFeatures:
    """The class token of DINOv2 (Oquab et al., 2023), as Stein et al. (2023) compare images.

    Args:
        path: Folder of a ``Dinov2Model`` of transformers: config.json and model.safetensors.
        pixel_max: Value of a white pixel in the images.

    Raises:
        UserError: If the folder or the library is missing. Nothing is downloaded or unpickled.
    """

    names = ("fd_dinov2", "")

    def __init__(self, path: str, *, pixel_max: int) -> None:
        folder = Path(path)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise UserError(f"metrics.dinov2_path: no {name} in {path}; it is never downloaded")
        try:
            kind = json.loads((folder / "config.json").read_text()).get("model_type")
        except (ValueError, AttributeError) as error:
            raise UserError(f"metrics.dinov2_path: {path}/config.json: {error}") from error
        if kind != "dinov2":
            raise UserError(f"metrics.dinov2_path: {path} is of type {kind!r}, expected 'dinov2'")
        try:
            from transformers import Dinov2Model
        except ImportError as error:
            raise UserError(
                "metrics.dinov2_path: needs transformers, which cannot be imported; "
                "pip install 'sft-rl[dino]'"
            ) from error
        self._model = Dinov2Model
        self.path = path
        self.pixel_max = pixel_max

    @cached_property
    def key(self) -> str:
        """Hash of weights and architecture."""
        return file_hash(f"{self.path}/model.safetensors", f"{self.path}/config.json")

    @property
    def facts(self) -> dict[str, str | int | float]:
        """Which weights."""
        return {"dinov2_sha256": self.key}

    @cached_property
    def _network(self) -> Any:
        try:
            network = self._model.from_pretrained(
                self.path, local_files_only=True, use_safetensors=True
            )
        except (SafetensorError, RuntimeError, ValueError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"metrics.dinov2_path: cannot read {self.path}: {reason}") from error
        return network.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    @torch.inference_mode()
    def __call__(self, images: Array) -> Array:
        """Map images (N, C, H, W), uint8, to float64 (N, dim), from 224x224 pixels."""
        device = next(self._network.parameters()).device
        mean, std = (torch.tensor(values, device=device)[:, None, None] for values in IMAGENET)
        parts = []
        for part in torch.split(torch.from_numpy(images), CHUNK):
            pixels = _rgb(part, self.pixel_max).to(device).float()
            large = F.interpolate(pixels, size=(DINO_SIZE,) * 2, mode="bicubic", antialias=True)
            tokens = self._network((large.clamp(0, 255) / 255 - mean) / std).last_hidden_state
            parts.append(tokens[:, 0].double().cpu())
        return torch.cat(parts).numpy()

    def published(self, reference: Gaussian, real: Array, generated: Array) -> Metrics:
        """Nothing beside the Fréchet distance."""
        return {}


def file_hash(*paths: str) -> str:
    """Hash of files' content."""
    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:20]


def _rgb(images: Tensor, pixel_max: int) -> Tensor:
    """Images of three channels, 0..255, uint8; grey ones three times."""
    return (images.float() * (255 / pixel_max)).round().to(torch.uint8).expand(-1, 3, -1, -1)
