"""What images are measured by: distances, precision and recall of features, and copies."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch

from sft_rl.config import MetricsConfig
from sft_rl.data.images import ImageDataset
from sft_rl.errors import UserError
from sft_rl.metrics.estimates import Estimate, Estimates, Measured, with_errors
from sft_rl.metrics.features import Features, file_hash
from sft_rl.metrics.fidelity import read_gaussian
from sft_rl.metrics.frechet import FrechetTo, Gaussian
from sft_rl.metrics.kernel import KernelTo
from sft_rl.metrics.neighbours import share_error
from sft_rl.types import Metrics

Array = np.ndarray
FORMAT = 2
CHUNK, BLOCK = 500, 5000
"""Images that are compared at once, and with how many others."""
MOST_PRODUCTS, FEWEST = 4 * 10**11, 500
"""Products of pixel values when copies are looked for: how many of the samples that allows."""


class FeaturesTo:
    """Distances to some real images in some features, which are computed once.

    Args:
        features: Maps images to vectors.
        images: The real ones.
        gaussian: Their Gaussian as others fitted it; None fits it.

    Raises:
        UserError: If the Gaussian is of other features.
    """

    def __init__(self, features: Features, images: Array, gaussian: Gaussian | None = None) -> None:
        self.features = features
        self.name, self.kernel = features.names
        self.real = features(images)
        if gaussian is not None and len(gaussian.mu) != self.real.shape[1]:
            raise UserError(
                f"metrics.reference_stats: of {len(gaussian.mu)} features, "
                f"expected {self.real.shape[1]}"
            )
        self.frechet = FrechetTo(gaussian) if gaussian else FrechetTo.of(self.real)

    @cached_property
    def _kernel_to(self) -> KernelTo:
        return KernelTo(self.real)

    def one(self, name: str, images: Array) -> Estimate:
        """One distance of some images, by its name."""
        generated = self.features(images)
        if name == self.kernel:
            return self._kernel_to(generated)
        plain = self.frechet(generated)
        return plain if name == self.name else self.frechet.at_infinity(plain, generated)

    def all(self, images: Array) -> Measured:
        """Every metric of some images."""
        generated = self.features(images)
        plain = self.frechet(generated)
        extrapolated = self.frechet.at_infinity(plain, generated)
        estimates = {self.name: plain, f"{self.name}_inf": extrapolated}
        if self.kernel:
            estimates[self.kernel] = self._kernel_to(generated)
        others = self.features.published(self.frechet.gaussian, self.real, generated)
        estimates = {n: e.at(others.pop(n, e.value)) for n, e in estimates.items()}
        counts = {"precision": len(generated), "recall": len(self.real)}
        errors = {f"{n}_se": share_error(others[n], k) for n, k in counts.items() if n in others}
        return Measured(with_errors(estimates) | others | errors, estimates)


class Images:
    """Fréchet and kernel distances in features, precision, recall, and how near copies are.

    Args:
        name: The metric that leads.
        config: Number of samples, and what others fitted.
        data: The images.
        features: What to compare; the first has the leading metric.

    Raises:
        UserError: If a file is not there or not what it should be.
    """

    unused = frozenset({"num_projections", "num_exact", "num_excess"})
    num_more = 0

    def __init__(
        self, name: str, config: MetricsConfig, data: ImageDataset, features: list[Features]
    ) -> None:
        self.name = name
        self.config = config
        self.data = data
        self.features = features
        stats = config.reference_stats
        self._gaussian = None if stats is None else read_gaussian(stats)
        self._prepared: tuple[Array, list[FeaturesTo]] | None = None

    @property
    def key(self) -> str:
        """Features, what others fitted, and the images whose copies are looked for."""
        stats = self.config.reference_stats
        parts = [*(f.key for f in self.features), *([] if stats is None else [file_hash(stats)])]
        return "-".join([f"images-{FORMAT}", *parts, self.data.fingerprint])

    def num_generated(self, reference: Array) -> int:
        """The number asked for, however many real ones there are."""
        return self.config.num_samples

    def distance(self, real: Array, generated: Array) -> float:
        """The metric that leads, of images, uint8, (N, C, H, W) each."""
        return self._to(real)[0].one(self.name, generated).value

    def watching(self, real: Array) -> Callable[[Array], Metrics]:
        """The same and its error, to one set of real images, which are never the reference."""
        to_real = FeaturesTo(self.features[0], real)
        return lambda images: with_errors({self.name: to_real.one(self.name, images)})

    def measured(self, real: Array, generated: Array) -> Measured:
        """Every metric.

        ``nearest_training`` is the median distance to the nearest training image over the same
        median of held-out images: about 1 if samples are as new as those, towards 0 if they are
        copies. Where half of the held-out images are training images themselves, it is not there.
        """
        numbers: Metrics = {}
        estimates: dict[str, Estimate] = {}
        for to_real in self._to(real):
            found = to_real.all(generated)
            numbers |= found.numbers
            estimates |= found.estimates
        if self._usual >= 1.0:  # pixels are whole numbers: less is rounding
            numbers["nearest_training"] = float(np.median(self._nearest(generated))) / self._usual
        return Measured(numbers, estimates)

    def _to(self, real: Array) -> list[FeaturesTo]:
        """What compares with some images; the features of the last ones asked for are kept."""
        if self._prepared is None or self._prepared[0] is not real:
            first, *others = self.features
            compare = [FeaturesTo(first, real, self._gaussian)]
            self._prepared = real, compare + [FeaturesTo(other, real) for other in others]
        return self._prepared[1]

    def _nearest(self, images: Array) -> Array:
        train = self.data.train.numpy()
        num = max(MOST_PRODUCTS // train.size, FEWEST)
        return nearest_distances(images[:num], train)

    @cached_property
    def _usual(self) -> float:
        """Median distance of held-out images to their nearest training image."""
        assert self.data.held_out is not None
        return float(np.median(self._nearest(self.data.held_out)))

    def noise_floors(self, draws: list[Array]) -> Metrics:
        """Of real images that are not the reference, as many as there are samples.

        If they are fewer, only metrics that do not depend on how many there are.
        """
        real, others = draws[0], draws[1][: self.config.num_samples]
        floors = self.measured(real, others)
        if len(others) == self.config.num_samples:
            return floors.numbers
        return with_errors(_free_of_counts(floors.estimates, self.features))

    def protocol(self, reference: Array) -> dict[str, str | int | float]:
        """Counts of images, and what the features are."""
        facts: dict[str, str | int | float] = {}
        for features in self.features:
            facts |= features.facts
        if self.config.reference_stats is not None:
            facts["reference_stats_sha256"] = file_hash(self.config.reference_stats)
        return {
            "num_samples": self.config.num_samples,
            "num_reference": len(reference),
            **facts,
        }


def _free_of_counts(estimates: Estimates, features: list[Features]) -> Estimates:
    biased = {f.names[0] for f in features}
    return {name: estimate for name, estimate in estimates.items() if name not in biased}


def nearest_distances(images: Array, others: Array) -> Array:
    """Euclidean distance of each image (N, ...) to its nearest among others (M, ...), shape (N,).

    Pixel values are taken as they are.
    """
    x, y = (torch.from_numpy(a).flatten(1) for a in (images, others))
    nearest = torch.full((len(x),), torch.inf)
    for some in torch.split(y, BLOCK):  # bytes, until they are compared
        few = some.float()
        for own, part in zip(torch.split(nearest, CHUNK), torch.split(x, CHUNK), strict=True):
            torch.minimum(own, torch.cdist(part.float(), few).amin(dim=1), out=own)
    return nearest.numpy()
