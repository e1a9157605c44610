"""What samples are measured by: a leading distance and others beside it, by the kind of data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from sft_rl.config import OF_FEATURES, WATCHED_OF_POINTS, MetricsConfig
from sft_rl.data import Dataset
from sft_rl.data.images import ImageDataset
from sft_rl.errors import UserError
from sft_rl.metrics.clip import Clip
from sft_rl.metrics.distances import (
    Array,
    SlicedWassersteinTo,
    earth_movers,
    mmd,
    noise_floor,
    sliced_wasserstein,
)
from sft_rl.metrics.estimates import Measured
from sft_rl.metrics.features import ClassifierFeatures, DinoFeatures, Features, InceptionFeatures
from sft_rl.metrics.images import Images
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

    def measured(self, real: Array, generated: Array) -> Measured:
        """Every metric, the leading one included; its standard error is called ``NAME_se``."""

    def noise_floors(self, draws: list[Array]) -> Metrics:
        """Every metric between the first draw of real data and the others, averaged.

        At the counts of what is measured, or not there. ``NAME_sd`` is the scatter over the draws,
        where there are several.
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

    def measured(self, real: Array, generated: Array) -> Measured:
        """Every metric of the same samples; the exact ones on their first `num_exact`."""
        num = self.config.num_exact
        return Measured(
            {
                self.name: self.distance(real, generated),
                "earth_movers": earth_movers(real[:num], generated[:num]),
                "mmd": mmd(real[:num], generated[:num]),
            }
        )

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


def build_measure(config: MetricsConfig, data: Dataset) -> Measure:
    """Build the yardstick a configuration names.

    Raises:
        UserError: If it does not go with the data.
    """
    name = config.leading(data.config, is_images=data.units.is_images)
    if name in OF_FEATURES and isinstance(data, ImageDataset):
        return Images(name, config, data, _features(name, config, data))
    for field, given in {
        "reference": config.reference == "train",
        "reference_stats": config.reference_stats is not None,
        "dinov2_path": config.dinov2_path is not None,
    }.items():
        if given:
            raise UserError(f"metrics.{field} goes with {', '.join(OF_FEATURES)}, not with {name}")
    if not isinstance(data, ImageDataset):
        if name not in WATCHED_OF_POINTS:
            raise UserError(f"metrics.distance: {name!r} is for images; use two_sample")
        return Points(name, config, data)
    if name == "two_sample":
        raise UserError("metrics.distance: 'two_sample' is for points; use sliced_wasserstein")
    return SlicedWasserstein(config)


def build_clip(config: MetricsConfig, data: Dataset) -> Clip | None:
    """Build what compares pictures with their prompts, if the configuration names a CLIP.

    Raises:
        UserError: If there are no prompts, or it is not there.
    """
    if config.clip_path is None:
        return None
    samples = data.units.samples
    if samples.prompts is None or samples.pixel_max is None:
        raise UserError("metrics.clip_path: goes with the prompts of a text-to-image pipeline")
    return Clip(config.clip_path, pixel_max=samples.pixel_max)


def _features(name: str, config: MetricsConfig, data: ImageDataset) -> list[Features]:
    """What images are compared by: the features of the leading metric, and DINOv2's beside."""
    leading: Features
    if name == "fid":
        leading = InceptionFeatures(config.inception_path, pixel_max=data.pixel_max)
    elif config.reference_stats is not None:
        raise UserError(f"metrics.reference_stats goes with fid, not with {name}")
    else:
        leading = ClassifierFeatures(data)
    if config.dinov2_path is None:
        return [leading]
    return [leading, DinoFeatures(config.dinov2_path, pixel_max=data.pixel_max)]
