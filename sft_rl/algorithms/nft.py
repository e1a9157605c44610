r"""Negative-aware fine-tuning by the forward process (DiffusionNFT: Zheng et al., 2025).

Only final samples and their scores count, no step of the sampler and no likelihood: deterministic
samplers learn, and from any reward. A sample x is noised again to the level of a step k, and the
network's prediction of x from there, D_theta, is drawn towards x if x is good, and away if not:

.. math::
    L = \mathbb{E}\bigl[r\, |D^+ - x|^2 + (1 - r)\, |D^- - x|^2\bigr], \qquad
    D^\pm = (1 \mp \beta) D_\text{old} \pm \beta D_\theta, \qquad
    r = \tfrac{1}{2} + \tfrac{1}{2} \mathrm{clip}\bigl((f(x) - \bar{f}) / z, -1, 1\bigr)

with D_old that of the old policy, which drew x, and both squares divided by the detached mean
distance of D+- from x. The clean sample stands for velocity or noise, to which it is linear at a
given latent: so any network will do. Where the policy is still the old one the gradient is that of
(2 r - 1) beta (D_old - x) D_theta: the pretraining's, weighted by how good x is.

The old policy is a moving average that follows slowly. Without it each iteration steps away from
the last one's bad samples, as far as they are off, and that grows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sft_rl.algorithms.advantages import within_groups
from sft_rl.algorithms.base import Algorithm, Networks
from sft_rl.config import NFTConfig
from sft_rl.policy import DenoisingPolicy
from sft_rl.types import Loss, Trajectories, given


@dataclass(frozen=True)
class Rated:
    """Final samples noised again, how good they are, and what the old policy makes of them.

    Attributes:
        samples: x, shape (N, *shape).
        quality: r in 0..1, shape (N,).
        latents: x noised to the level of a step, shape (N, *shape).
        step_index: Which step, int64, shape (N,).
        old: D_old, shape (N, *shape).
        labels: Classes, int64, shape (N,); None if the model is unconditional.
    """

    samples: Tensor
    quality: Tensor
    latents: Tensor
    step_index: Tensor
    old: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, rows: slice) -> Rated:
        """Take some of them."""
        parts = {name: part for name, part in vars(self).items() if part is not None}
        return Rated(**{name: part[rows] for name, part in parts.items()})


@dataclass(frozen=True)
class Drawn:
    """Final samples (B, *shape), their quality (B,) and labels."""

    samples: Tensor
    quality: Tensor
    labels: Tensor | None


class NFT(Algorithm):
    """DiffusionNFT; see :class:`sft_rl.config.NFTConfig` for its options."""

    Options = NFTConfig
    options: NFTConfig
    splits_batches = True

    def begin(self, networks: Networks) -> None:
        """Let the old policy start as the policy itself; as a module, it is saved by itself."""
        self.old = copy.deepcopy(networks.policy).requires_grad_(False)

    def behaviour(self, networks: Networks) -> DenoisingPolicy:
        """The old policy draws."""
        return self.old

    def num_density_steps(self, num_steps: int) -> int:
        """No step needs a density."""
        return 0

    @torch.no_grad()
    def prepare(self, trajectories: Trajectories, networks: Networks) -> Drawn:
        """Score the final samples."""
        labels = trajectories.labels
        scores = networks.scores(trajectories)
        compared = trajectories.group_size if trajectories.group_size > 1 else len(scores)
        centred = within_groups(scores, compared, scale="none")
        scaled = centred / (self.options.spread * scores.std() + 1e-8)
        quality = 0.5 + 0.5 * scaled.clamp(-1.0, 1.0)
        return Drawn(trajectories.final, quality, labels)

    @torch.no_grad()
    def batches(self, prepared: Drawn, generator: torch.Generator) -> Iterator[Rated]:
        """Yield all samples at `levels_per_sample` levels for each of the `n_generator` steps."""
        old, times = self.old, self.options.levels_per_sample
        samples, quality, *labels = (
            rows.repeat_interleave(times, dim=0)
            for rows in (prepared.samples, prepared.quality, *given(prepared.labels))
        )
        for _ in range(self.training.n_generator):
            k = torch.randint(old.num_steps, quality.shape, generator=generator, device=old.device)
            eps = torch.randn(samples.shape, generator=generator, device=old.device)
            latents = old.noised(samples, eps, k)
            expected = old.expected_final(latents, k, *labels)
            yield Rated(samples, quality, latents, k, expected, *labels)

    def loss(self, batch: Rated, networks: Networks) -> Loss:
        """Return both terms, averaged over samples and dimensions."""
        new = networks.policy.expected_final(batch.latents, batch.step_index, batch.labels)
        moved = self.options.beta * (new - batch.old)
        good, bad = (_distance(batch.old + way * moved, batch.samples) for way in (1.0, -1.0))
        quality = batch.quality
        value = (quality * good + (1.0 - quality) * bad).mean()
        change = (new - batch.old).detach().square().mean()
        if self.options.kl_weight > 0:
            with torch.no_grad():
                first = networks.pretrained.expected_final(
                    batch.latents, batch.step_index, batch.labels
                )
            value = value + self.options.kl_weight * (new - first).square().mean()
        return Loss(value, {"quality": quality.mean(), "prediction_change": change})

    @torch.no_grad()
    def finish(self, networks: Networks) -> None:
        """Let the old policy follow: theta_old <- decay theta_old + (1 - decay) theta."""
        for own, new in zip(self.old.parameters(), networks.policy.parameters(), strict=True):
            if own is not new:  # as those are that a LoRA leaves alone
                own.lerp_(new, 1.0 - self.options.old_decay)


def _distance(prediction: Tensor, x: Tensor) -> Tensor:
    """Mean square over a sample's dimensions, divided by their mean distance, detached; (N,)."""
    error = (prediction - x).flatten(1)
    return error.square().mean(dim=1) / (error.detach().abs().mean(dim=1) + 1e-5)
