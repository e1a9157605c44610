"""How good the full-step sampler is: what a few-step sampler is compared with."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sft_rl.diffusion.noise import GaussianPath
from sft_rl.diffusion.prediction import Prediction
from sft_rl.diffusion.schedule import own_steps, spread_steps
from sft_rl.metrics.distances import Array
from sft_rl.metrics.estimates import Estimate, Estimates
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.policy import DenoisingPolicy
from sft_rl.seeding import generator
from sft_rl.storage.cache import arithmetic, cached, digest
from sft_rl.storage.checkpoint import Checkpoint, state_sha256
from sft_rl.types import Progress, silent

Summary = dict[str, Any]
NUM_KEPT = {"images": 64, "points": 10_000}
"""Samples of the full-step sampler that are kept for pictures."""
NUM_PROBES = 8
FORMAT = 3
"""Part of the cache's key; counts changes of the code that give other numbers."""


@dataclass(frozen=True)
class FullStep:
    """The full-step sampler, measured.

    Attributes:
        numbers: Every distance, the noise floors, and the number of function evaluations; the
            floors alone if no such sampler is wanted.
        samples: Some samples in the data's units, for pictures, if there are any.
        estimates: What the errors of differences to it need.
    """

    numbers: Summary
    samples: Array | None
    estimates: Estimates = field(default_factory=dict)


def measure_full_step(
    network: nn.Module,
    evaluator: Evaluator,
    *,
    path: GaussianPath,
    prediction: Prediction,
    variance: str = "fixed_small",
    num_classes: int = 0,
    warn: Callable[[str], None] = warnings.warn,
    progress: Progress = silent,
) -> FullStep:
    """Measure the sampler of `metrics.full_step` and the noise floors, once for a network.

    Kept in the cache, by the sampler's weights, its answers and the measuring protocol.

    Args:
        network: The full-step network.
        evaluator: Measures; knows the data.
        path: The forward process it was trained with.
        prediction: What it predicts.
        variance: Of its steps' noise, as of `noise.variance`.
        num_classes: Classes it is conditional on; 0 for none.
        warn: Is told of a cache entry that is damaged.
        progress: Is told how far the drawing is.
    """
    num_steps = evaluator.config.full_step
    if num_steps == "off":
        return FullStep(
            _with_leading_floor(evaluator, {"noise_floors": evaluator.noise_floors()}), None
        )
    if num_steps == "all":
        steps = own_steps(path, prediction, variance=variance)
    else:
        steps = spread_steps(path, num_steps, prediction, variance=variance)
    policy = DenoisingPolicy(network, steps, shape=evaluator.data.shape, num_classes=num_classes)
    policy = policy.to(next(network.parameters()).device)
    key = {
        "format": FORMAT,
        "policy": state_sha256(policy),
        "clip": policy.clip,
        "answers": digest(_answers(policy)),
        "protocol": evaluator.key,
        **arithmetic(policy.device),
    }
    entry, _ = cached("full_step", key, lambda: _measured(policy, evaluator, progress), warn=warn)
    numbers, tensors = entry.meta["numbers"], dict(entry.tensors)
    samples = tensors.pop("samples")["samples"].numpy()
    estimates = {
        name: Estimate(numbers[name], sides["real"].numpy(), sides["generated"].numpy())
        for name, sides in tensors.items()
    }
    return FullStep(_with_leading_floor(evaluator, numbers), samples, estimates)


def _with_leading_floor(evaluator: Evaluator, numbers: Summary) -> Summary:
    """Which metric leads is in no key; a floor may be missing, for want of real images."""
    return {**numbers, "noise_floor": numbers["noise_floors"].get(evaluator.name)}


@torch.inference_mode()
def _answers(policy: DenoisingPolicy) -> Array:
    """What the sampler does with fixed latents: tells networks apart that share their weights."""
    source = generator(0, "probe", device=policy.device)
    labels = policy.random_labels(NUM_PROBES, source)
    latents = torch.randn((NUM_PROBES, *policy.shape), generator=source, device=policy.device)
    steps = torch.linspace(0, policy.num_steps - 1, NUM_PROBES, device=policy.device).long()
    return policy.mean(latents, steps, labels).cpu().numpy()


def _measured(policy: DenoisingPolicy, evaluator: Evaluator, progress: Progress) -> Checkpoint:
    samples = evaluator.samples(policy, few=True, progress=progress)
    floors = evaluator.noise_floors()
    measured = evaluator.measured(samples)
    numbers = {**measured.numbers, "nfe": policy.num_steps, "noise_floors": floors}
    influences = {
        name: {
            "real": torch.from_numpy(estimate.real),
            "generated": torch.from_numpy(estimate.generated),
        }
        for name, estimate in measured.estimates.items()
    }
    kept = samples[: NUM_KEPT["images" if evaluator.data.units.is_images else "points"]]
    tensors = {"samples": {"samples": torch.from_numpy(kept)}, **influences}
    return Checkpoint(tensors, {"numbers": numbers})
