"""What samples are measured by: a leading distance and others beside it, by the kind of data."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Protocol

import numpy as np
import torch

from sft_rl.config import Config, MetricsConfig
from sft_rl.data import Dataset
from sft_rl.data.images import ImageDataset
from sft_rl.errors import UserError
from sft_rl.metrics.classifier import NUM_FEATURES, Classifier, cached_classifier, classifier_key
from sft_rl.metrics.distances import (
    Array,
    SlicedWassersteinTo,
    earth_movers,
    mmd,
    noise_floor,
    sliced_wasserstein,
)
from sft_rl.metrics.frechet import frechet_distance, kernel_distance, nearest_distances
from sft_rl.types import Metrics


class Measure(Protocol):
    """A yardstick; the name of its leading distance is :attr:`sft_rl.config.Config.distance`."""

    @property
    def key(self) -> str:
        """Changes with what its numbers depend on beside the metrics' settings."""

    def num_generated(self, reference: Array) -> int:
        """How many samples to draw against a reference."""

    def distance(self, real: Array, generated: Array) -> float:
        """The distance that leads."""

    def distance_to(self, real: Array) -> Callable[[Array], float]:
        """The same to one set of real data, prepared so that it is quick to repeat."""

    def all_distances(self, real: Array, generated: Array) -> Metrics:
        """Every distance, the leading one included."""

    def noise_floors(self, draws: list[Array]) -> Metrics:
        """Every distance between the first draw of real data and the others, averaged."""

    def protocol(self, reference: Array) -> dict[str, str | int | float]:
        """What a reader needs to know to repeat the numbers."""


class SlicedWasserstein:
    """Sliced Wasserstein distance, beside it the earth mover's and MMD, of points or pixels."""

    name = "sliced_wasserstein"
    key = name

    def __init__(self, config: MetricsConfig) -> None:
        self.config = config
        num, seed = config.num_projections, config.seed
        self.distance = partial(sliced_wasserstein, num_projections=num, seed=seed)
        self.distance_to = partial(SlicedWassersteinTo, num_projections=num, seed=seed)

    def num_generated(self, reference: Array) -> int:
        """As many as there are real ones."""
        return len(reference)

    def all_distances(self, real: Array, generated: Array) -> Metrics:
        """Every metric of the same samples; the exact ones on their first `num_exact`."""
        num = self.config.num_exact
        return {
            self.name: self.distance(real, generated),
            "earth_movers": earth_movers(real[:num], generated[:num]),
            "mmd": mmd(real[:num], generated[:num]),
        }

    def noise_floors(self, draws: list[Array]) -> Metrics:
        """Means over the draws; the exact distances over two of them."""
        few = [draw[: self.config.num_exact] for draw in draws[:3]]
        return {
            self.name: noise_floor(self.distance, draws),
            "earth_movers": noise_floor(earth_movers, few),
            "mmd": noise_floor(mmd, few),
        }

    def protocol(self, reference: Array) -> dict[str, str | int | float]:
        """Counts of samples and projections."""
        return {
            "num_samples": len(reference),
            "num_projections": self.config.num_projections,
            "num_exact": min(self.config.num_exact, len(reference)),
        }


class FeatureFrechet:
    """Fréchet distance in the features of a small classifier; beside it the kernel distance.

    It is no FID: the features are not Inception's, and numbers compare only on the same data.
    """

    name = "frechet"

    def __init__(self, config: MetricsConfig, data: ImageDataset) -> None:
        if data.labels is None:
            raise UserError(
                "metrics.distance: 'frechet' needs labelled images, in a subfolder or with a label "
                "for each class; use sliced_wasserstein"
            )
        self.config = config
        self.data = data

    @property
    def key(self) -> str:
        """Name and classifier."""
        return f"{self.name}-{classifier_key(self.data)}"

    @cached_property
    def _trained(self) -> tuple[Classifier, float]:
        return cached_classifier(self.data)

    def _features(self, images: Array) -> Array:
        return self._trained[0].embed(self.data.to_model(torch.from_numpy(images)))

    def num_generated(self, reference: Array) -> int:
        """The number asked for, however many real ones there are."""
        return self.config.num_samples

    def distance(self, real: Array, generated: Array) -> float:
        """Fréchet distance of images, uint8, (N, C, H, W) each."""
        return self.distance_to(real)(generated)

    def distance_to(self, real: Array) -> Callable[[Array], float]:
        """The same to one set of real images, whose features are computed once."""
        features = self._features(real)
        return lambda generated: frechet_distance(features, self._features(generated))

    def all_distances(self, real: Array, generated: Array) -> Metrics:
        """Both distances, and how near the samples are to training images.

        ``nearest_training`` is the median distance to the nearest training image over the same
        median of the reference: about 1 if samples are as new as held-out images, towards 0 if
        they are copies.
        """
        real_features, features = self._features(real), self._features(generated)
        return {
            self.name: frechet_distance(real_features, features),
            "kernel": kernel_distance(real_features, features),
            "nearest_training": float(np.median(self._nearest(generated)) / self._nearest_real),
        }

    def _nearest(self, images: Array) -> Array:
        return nearest_distances(images, self.data.train.numpy())

    @cached_property
    def _nearest_real(self) -> float:
        assert self.data.held_out is not None
        return float(np.median(self._nearest(self.data.held_out)))

    def noise_floors(self, draws: list[Array]) -> Metrics:
        """Of training images: what a sampler gets that draws them."""
        features = [self._features(draw) for draw in draws]
        return {
            self.name: noise_floor(frechet_distance, features),
            "kernel": noise_floor(kernel_distance, features),
            "nearest_training": 0.0,
        }

    def protocol(self, reference: Array) -> dict[str, str | int | float]:
        """Counts of images, and how good the classifier is."""
        return {
            "num_samples": self.config.num_samples,
            "num_reference": len(reference),
            "features": f"{NUM_FEATURES} of a classifier of the training images",
            "classifier_accuracy": round(self._trained[1], 4),
        }


def build_measure(config: Config, data: Dataset) -> Measure:
    """Build the yardstick a configuration names.

    Raises:
        UserError: If it does not go with the data.
    """
    if config.distance == "sliced_wasserstein":
        return SlicedWasserstein(config.metrics)
    if not isinstance(data, ImageDataset):
        raise UserError("metrics.distance: 'frechet' is for images; use sliced_wasserstein")
    return FeatureFrechet(config.metrics, data)
