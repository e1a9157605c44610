"""The measuring protocol: what is compared with what, with which seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch

from sft_rl.config import MetricsConfig
from sft_rl.data import Dataset
from sft_rl.data.pictures import sample_grid
from sft_rl.metrics.distances import Array
from sft_rl.metrics.estimates import Measured
from sft_rl.metrics.measures import build_clip, build_measure
from sft_rl.policy import DenoisingPolicy, chunk_of
from sft_rl.seeding import generator
from sft_rl.storage.cache import Key, digest
from sft_rl.types import Metrics, Progress, silent

AT_ONCE = 5000
"""Samples that are drawn before they are kept as the data are: whole chunks of a policy's."""
NUM_FLOOR_DRAWS = 8
VALIDATION_FACTOR = 2
REFERENCES = {"held_out": "held-out", "train": "training"}


class Evaluator:
    """Measures policies against one fixed draw of real data: held out, or of the training images.

    The same seed gives the starting noise at every evaluation, so that two policies, or one at
    two times, are compared on common random numbers.
    """

    def __init__(self, data: Dataset, config: MetricsConfig) -> None:
        self.data = data
        self.config = config
        self.measure = build_measure(config, data)
        self.clip = build_clip(config, data)
        self.name = self.measure.name

    @property
    def key(self) -> Key:
        """All that determines its numbers beside the samples."""
        # by the measure's key
        covered = {"distance", "inception_path", "dinov2_path", "reference_stats"}
        of_a_policy = {"full_step", "clip_path"}
        # Some metrics take all that is held out, others only as much as they ask for.
        held_out = [] if self.data.held_out is None else [self.data.held_out]
        units = self.data.units.samples.model_dump(include={"shift", "scale", "pixel_max"})
        return {
            "measure": self.measure.key,
            "settings": self.config.model_dump(exclude=covered | of_a_policy | self.measure.unused),
            "real": digest(*held_out, *self._real_draws()),
            **units,
        }

    @cached_property
    def reference(self) -> Array:
        """Real samples in the data's units: at most `num_samples`, or all training images."""
        if self.config.reference == "train":
            return self.data.train_in_units(len(self.data.train))
        return self.data.real(self.config.num_samples, self.config.seed, draw=0)

    @cached_property
    def _validation(self) -> tuple[int, Callable[[Array], Metrics]]:
        """How many samples to draw, and what measures them against validation data.

        That is training data, or the held-out images where the reference is training images:
        nothing of what is reported is used to choose.
        """
        num = VALIDATION_FACTOR * self.config.num_samples
        if self.config.reference == "train":
            real = self.data.real(num, self.config.seed, draw=0)
        else:
            real = self.data.train_in_units(num)
        return self.measure.num_generated(real), self.measure.watching(real)

    def samples(
        self, policy: DenoisingPolicy, *, few: bool = False, progress: Progress = silent
    ) -> Array:
        """Draw as many samples as the protocol wants, in the data's units.

        Args:
            policy: Draws them.
            few: Leave out what only the excess distance takes, since a sample costs many steps.
            progress: Is told how far the drawing is.
        """
        num = self.measure.num_generated(self.reference)
        num = num if few else max(num, self.measure.num_more)
        return self._draw(policy, num, "evaluation", progress)

    def prompts(self, policy: DenoisingPolicy, num: int) -> tuple[str, ...]:
        """Which prompts `num` of a policy's :meth:`samples` are of."""
        known = self.data.units.samples.prompts
        assert known is not None, "asked of runs with prompts"
        labels = policy.random_labels(num, self._source(policy, "evaluation"))
        assert labels is not None
        return tuple(known.texts[i] for i in labels.tolist())

    def _source(self, policy: DenoisingPolicy, purpose: str) -> torch.Generator:
        return generator(self.config.seed, purpose, device=policy.device)

    def _draw(
        self, policy: DenoisingPolicy, num: int, purpose: str, progress: Progress = silent
    ) -> Array:
        source = self._source(policy, purpose)
        labels = policy.random_labels(num, source)
        units, whole = self.data.units, None
        num_steps, chunk = policy.num_steps, chunk_of(policy.shape)
        for start in range(0, num, AT_ONCE):
            rows = slice(start, min(start + AT_ONCE, num))

            def tell(done: int, _: int, __: Metrics, before: int = start // chunk) -> None:
                progress(before * num_steps + done, math.ceil(num / chunk) * num_steps, {})

            own = None if labels is None else labels[rows]
            drawn = policy.sample(rows.stop - start, source, own, progress=tell)
            part = units.joined(drawn, own)  # pixels are bytes: a fourth of what was drawn
            whole = np.empty((num, *part.shape[1:]), part.dtype) if whole is None else whole
            whole[rows] = part
        assert whole is not None, "no protocol wants none"
        return whole

    def validate(self, policy: DenoisingPolicy) -> tuple[Metrics, Array | None]:
        """Measure a policy against validation data, with noise of its own, and make a picture.

        For looking at a run and choosing its best policy; results are reported against the
        reference.

        Returns:
            What is quick to measure, the leading metric included; and a grid of the first samples,
            RGB, uint8, shape (height, width, 3), or None if they are points.
        """
        num, watch = self._validation
        samples = self._draw(policy, num, "validation")
        picture = None
        if (pixel_max := self.data.units.samples.pixel_max) is not None:
            picture = sample_grid(samples, pixel_max)
        return watch(samples), picture

    def distance(self, samples: Array) -> float:
        """The leading metric of samples against the reference."""
        return self.measure.distance(self.reference, samples)

    def measured(self, samples: Array) -> Measured:
        """Every metric of the same samples, with errors."""
        return self.measure.measured(self.reference, samples)

    def all_distances(self, samples: Array) -> Metrics:
        """Every metric of the same samples, without what the error of a difference needs."""
        return self.measured(samples).numbers

    def noise_floors(self) -> Metrics:
        """Every metric between the reference and other real data."""
        return self.measure.noise_floors(self._real_draws())

    def _real_draws(self) -> list[Array]:
        """The reference and other real data."""
        config, num_others = self.config, NUM_FLOOR_DRAWS if self.data.held_out is None else 1
        if config.reference == "train":
            others = [self.data.real(config.num_samples, config.seed, draw=0)]
        else:
            draws = range(1, 1 + num_others)
            others = [self.data.real(config.num_samples, config.seed, draw) for draw in draws]
        return [self.reference, *others]

    @property
    def protocol(self) -> dict[str, str | int | float]:
        """What a reader needs to know to repeat the numbers."""
        return {
            **self.measure.protocol(self.reference),
            **({} if self.clip is None else self.clip.facts),
            "reference": f"{REFERENCES[self.config.reference]} {self.data.config.name}",
            "seed": self.config.seed,
        }


def denoising_path(policy: DenoisingPolicy, data: Dataset, num: int, seed: int) -> Array:
    """Follow some samples step by step, in the data's units, shape (T+1, num, *shape)."""
    source = generator(seed, "path", device=policy.device)
    labels = policy.random_labels(num, source)
    with torch.inference_mode():
        start = torch.randn((num, *policy.shape), generator=source, device=policy.device)
        latents = [start, *policy.denoise(start, source, labels)]
    return data.units.to_data(torch.stack(latents))
