"""What samples are measured by: a leading distance and others beside it, by the kind of data."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Protocol

import numpy as np

from sft_rl.config import WATCHED_OF_POINTS, MetricsConfig
from sft_rl.data import Dataset
from sft_rl.data.images import ImageDataset
from sft_rl.errors import UserError
from sft_rl.metrics.distances import (
    Array,
    SlicedWassersteinTo,
    earth_movers,
    mmd,
    noise_floor,
    sliced_wasserstein,
)
from sft_rl.metrics.features import ClassifierFeatures, Features, InceptionFeatures
from sft_rl.metrics.frechet import frechet_distance, kernel_distance, nearest_distances
from sft_rl.metrics.neighbours import precision_recall
from sft_rl.metrics.points import Points
from sft_rl.types import Metrics


class Measure(Protocol):
    """A yardstick; :meth:`sft_rl.config.MetricsConfig.leading` names its leading metric.

    Attributes:
        name: That metric.
        num_more: How many samples to draw where they cost few steps; 0 for no more than usual.
    """

    name: str
    num_more: int

    unused: frozenset[str]
    """Settings of the metrics that its numbers do not depend on."""

    @property
    def key(self) -> str:
        """Changes with what its numbers depend on beside the metrics' settings."""

    def num_generated(self, reference: Array) -> int:
        """How many samples to draw against a reference."""

    def distance(self, real: Array, generated: Array) -> float:
        """The metric that leads."""

    def watching(self, real: Array) -> Callable[[Array], Metrics]:
        """What evaluations measure, :attr:`Config.watched`, against one set of real data.

        Prepared so that it is quick to repeat.
        """

    def all_distances(self, real: Array, generated: Array) -> Metrics:
        """Every metric, the leading one included; its standard error is called ``NAME_se``."""

    def noise_floors(self, draws: list[Array]) -> Metrics:
        """Every metric between the first draw of real data and the others, averaged.

        ``NAME_sd`` is the scatter over the draws, where there are several.
        """

    def protocol(self, reference: Array) -> dict[str, str | int | float]:
        """What a reader needs to know to repeat the numbers."""


class SlicedWasserstein:
    """Sliced Wasserstein distance, beside it the earth mover's and MMD, of pixels."""

    name = "sliced_wasserstein"
    key = name
    unused = frozenset[str]()
    num_more = 0

    def __init__(self, config: MetricsConfig) -> None:
        self.config = config
        num, seed = config.num_projections, config.seed
        self.distance = partial(sliced_wasserstein, num_projections=num, seed=seed)
        self._distance_to = partial(SlicedWassersteinTo, num_projections=num, seed=seed)

    def watching(self, real: Array) -> Callable[[Array], Metrics]:
        """The distance to one set of images."""
        distance = self._distance_to(real)
        return lambda generated: {self.name: distance(generated)}

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
    """Fréchet distance in some features of images; beside it the kernel distance and others.

    Only in Inception's features it is the FID.

    Args:
        config: Number of samples.
        data: The images.
        features: What to compare.
    """

    unused = frozenset({"num_projections", "num_exact"})
    num_more = 0

    def __init__(self, config: MetricsConfig, data: ImageDataset, features: Features) -> None:
        self.config = config
        self.data = data
        self.features = features
        self.name, self.kernel = features.names

    @property
    def key(self) -> str:
        """Name, features, and the images whose copies are looked for."""
        return f"{self.name}-{self.features.key}-{self.data.fingerprint}"

    def num_generated(self, reference: Array) -> int:
        """The number asked for, however many real ones there are."""
        return self.config.num_samples

    def distance(self, real: Array, generated: Array) -> float:
        """Fréchet distance of images, uint8, (N, C, H, W) each."""
        return self.watching(real)(generated)[self.name]

    def watching(self, real: Array) -> Callable[[Array], Metrics]:
        """The same to one set of real images, whose features are computed once."""
        features = self.features(real)
        return lambda images: {self.name: frechet_distance(features, self.features(images))}

    def all_distances(self, real: Array, generated: Array) -> Metrics:
        """Distances, precision and recall, and how near the samples are to training images.

        ``nearest_training`` is the median distance to the nearest training image over the same
        median of the reference: about 1 if samples are as new as held-out images, towards 0 if
        they are copies.
        """
        nearest = np.median(self._nearest(generated)) / self._nearest_real
        compared = self._compared(self.features(real), self.features(generated))
        return {**compared, "nearest_training": float(nearest)}

    def _compared(self, real: Array, generated: Array) -> Metrics:
        precision, recall = precision_recall(real, generated, neighbours=3)
        return {
            self.name: frechet_distance(real, generated),
            self.kernel: kernel_distance(real, generated),
            "precision": precision,
            "recall": recall,
        }

    def _nearest(self, images: Array) -> Array:
        return nearest_distances(images, self.data.train.numpy())

    @cached_property
    def _nearest_real(self) -> float:
        assert self.data.held_out is not None
        return float(np.median(self._nearest(self.data.held_out)))

    def noise_floors(self, draws: list[Array]) -> Metrics:
        """Of training images: what a sampler gets that draws them."""
        real, training = (self.features(draw) for draw in draws)
        return {**self._compared(real, training), "nearest_training": 0.0}

    def protocol(self, reference: Array) -> dict[str, str | int | float]:
        """Counts of images, and what the features are."""
        return {
            "num_samples": self.config.num_samples,
            "num_reference": len(reference),
            **self.features.facts,
        }


def build_measure(config: MetricsConfig, data: Dataset) -> Measure:
    """Build the yardstick a configuration names.

    Raises:
        UserError: If it does not go with the data.
    """
    name = config.leading(data.config, is_images=data.units.is_images)
    if not isinstance(data, ImageDataset):
        if name not in WATCHED_OF_POINTS:
            raise UserError(f"metrics.distance: {name!r} is for images; use two_sample")
        return Points(name, config, data)
    if name == "sliced_wasserstein":
        return SlicedWasserstein(config)
    if name == "two_sample":
        raise UserError("metrics.distance: 'two_sample' is for points; use sliced_wasserstein")
    features = (
        InceptionFeatures(config.inception_path, pixel_max=data.pixel_max)
        if name == "fid"
        else ClassifierFeatures(data)
    )
    return FeatureFrechet(config, data, features)
