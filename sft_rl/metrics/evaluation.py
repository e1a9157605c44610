"""The measuring protocol: what is compared with what, with which seeds."""

from __future__ import annotations

from functools import cached_property, partial

import torch

from sft_rl.config import MetricsConfig
from sft_rl.data import Dataset
from sft_rl.metrics.distances import (
    Array,
    SlicedWassersteinTo,
    earth_movers,
    mmd,
    noise_floor,
    sliced_wasserstein,
)
from sft_rl.policy import DenoisingPolicy
from sft_rl.seeding import generator
from sft_rl.types import Metrics

NUM_FLOOR_DRAWS = 8
VALIDATION_FACTOR = 2


class Evaluator:
    """Measures policies against one fixed draw of held-out real data.

    The same seed gives the starting noise at every evaluation, so that two policies, or one at
    two times, are compared on common random numbers.
    """

    def __init__(self, data: Dataset, config: MetricsConfig) -> None:
        self.data = data
        self.config = config

    @cached_property
    def reference(self) -> Array:
        """Real points in the data's units, shape (num_samples, dim)."""
        return self.data.real(self.config.num_samples, self.config.seed, draw=0)

    @cached_property
    def _validation(self) -> SlicedWassersteinTo:
        """Distance to training data: nothing of what is reported is used to choose."""
        real = self.data.train[: VALIDATION_FACTOR * self.config.num_samples]
        return SlicedWassersteinTo(
            self.data.to_units(real),
            num_projections=self.config.num_projections,
            seed=self.config.seed,
        )

    def samples(self, policy: DenoisingPolicy) -> Array:
        """Draw as many samples as the reference has, in the data's units."""
        return self._draw(policy, len(self.reference), "evaluation")

    def _draw(self, policy: DenoisingPolicy, num: int, purpose: str) -> Array:
        source = generator(self.config.seed, purpose, device=policy.device)
        return self.data.to_units(policy.sample(num, source))

    def validate(self, policy: DenoisingPolicy) -> float:
        """Sliced Wasserstein-2 distance to training data, with noise of its own.

        For looking at a run and choosing its best policy; results are reported against the
        reference.
        """
        num = self._validation.real.shape[1]
        return self._validation(self._draw(policy, num, "validation"))

    def distance(self, samples: Array) -> float:
        """Sliced Wasserstein-2 distance of samples to the reference."""
        return self._sliced(self.reference, samples)

    def all_distances(self, samples: Array) -> Metrics:
        """Every metric of the same samples; the exact ones on their first `num_exact`."""
        num = self.config.num_exact
        real, few = self.reference[:num], samples[:num]
        return {
            "sliced_wasserstein": self.distance(samples),
            "earth_movers": earth_movers(real, few),
            "mmd": mmd(real, few),
        }

    def noise_floors(self) -> Metrics:
        """Every metric between the reference and independent draws of real data."""
        draws = [
            self.data.real(self.config.num_samples, self.config.seed, draw)
            for draw in range(1 + (NUM_FLOOR_DRAWS if self.data.held_out is None else 1))
        ]
        few = [draw[: self.config.num_exact] for draw in draws[:3]]
        return {
            "sliced_wasserstein": noise_floor(self._sliced, draws),
            "earth_movers": noise_floor(earth_movers, few),
            "mmd": noise_floor(mmd, few),
        }

    @property
    def protocol(self) -> dict[str, str | int]:
        """What a reader needs to know to repeat the numbers."""
        return {
            "num_samples": len(self.reference),
            "num_projections": self.config.num_projections,
            "num_exact": min(self.config.num_exact, len(self.reference)),
            "reference": f"held-out {self.data.config.name}",
            "seed": self.config.seed,
        }

    @property
    def _sliced(self) -> partial[float]:
        return partial(
            sliced_wasserstein,
            num_projections=self.config.num_projections,
            seed=self.config.seed,
        )


def sample_in_units(policy: DenoisingPolicy, data: Dataset, num: int, seed: int) -> Array:
    """Draw samples for a user, in the data's units, shape (num, *shape)."""
    return data.to_units(policy.sample(num, generator(seed, "user", device=policy.device)))


def denoising_path(policy: DenoisingPolicy, data: Dataset, num: int, seed: int) -> Array:
    """Follow some samples step by step, in the data's units, shape (T+1, num, *shape)."""
    source = generator(seed, "path", device=policy.device)
    with torch.inference_mode():
        start = torch.randn((num, *policy.shape), generator=source, device=policy.device)
        latents = [start, *policy.denoise(start, source)]
    return data.to_units(torch.stack(latents))
