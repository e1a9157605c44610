"""What images are compared by: the features of a small classifier of ours, or of Inception."""

from __future__ import annotations

import hashlib
import pickle
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from sft_rl.data.images import ImageDataset
from sft_rl.errors import UserError
from sft_rl.metrics.classifier import NUM_FEATURES, Classifier, cached_classifier, classifier_key

Array = np.ndarray
INCEPTION_FEATURES = "2048"
CHUNK = 100


class Features(Protocol):
    """Maps images to vectors.

    Attributes:
        names: What the Fréchet and the kernel distance are called in them.
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


class ClassifierFeatures:
    """Of a small classifier that is trained on the same labelled images.

    Raises:
        UserError: If the images have no labels.
    """

    names = ("frechet", "kernel")

    def __init__(self, data: ImageDataset) -> None:
        if data.labels is None:
            raise UserError(
                "metrics.distance: 'frechet' needs labelled images, in a subfolder or with a label "
                "for each class; use sliced_wasserstein"
            )
        self.data = data

    @property
    def key(self) -> str:
        """Hash of what determines the classifier."""
        return classifier_key(self.data)

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
        return self._trained[0].embed(self.data.units.to_model(torch.from_numpy(images)))


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
        with open(self.path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:20]

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
        parts = []
        for part in torch.split(torch.from_numpy(images), CHUNK):
            pixels = (part.float() * (255 / self.pixel_max)).round().to(torch.uint8)
            rgb = pixels.expand(-1, 3, -1, -1).contiguous()
            parts.append(self._network(rgb.to(device))[0].double().cpu())
        return torch.cat(parts).numpy()
