"""How good the full-step sampler is: what a few-step sampler is compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from sft_rl.diffusion.noise import NoiseSchedule
from sft_rl.diffusion.schedule import own_steps
from sft_rl.metrics.distances import Array
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.policy import DenoisingPolicy
from sft_rl.storage.cache import cache_folder
from sft_rl.storage.files import replace_file, saving
from sft_rl.types import Metrics

Summary = dict[str, Any]
NUM_KEPT = {"images": 64, "points": 10_000}
"""Samples of the full-step sampler that are kept for pictures."""


def full_step_metrics(
    network: nn.Module,
    evaluator: Evaluator,
    *,
    key: str,
    noise: NoiseSchedule,
    num_classes: int = 0,
) -> Summary:
    """Measure the full-step sampler and the noise floors, once for a pretrained model.

    Kept in the cache, by the model and the measuring protocol.

    Args:
        network: The full-step network.
        evaluator: Measures; knows the data.
        key: Hash of all that determines the network.
        noise: The forward process it was trained with.
        num_classes: Classes it is conditional on; 0 for none.
    """
    file = _full_step_file(key, evaluator)
    if file.exists():
        return dict(json.loads(file.read_text()))
    policy = DenoisingPolicy(
        network, own_steps(noise), shape=evaluator.data.shape, num_classes=num_classes
    )
    policy = policy.to(next(network.parameters()).device)
    samples = evaluator.samples(policy, few=True)
    distances: Metrics = evaluator.all_distances(samples)
    floors = evaluator.noise_floors()
    result: Summary = {
        **distances,
        "nfe": policy.num_steps,
        "noise_floor": floors[evaluator.name],
        "noise_floors": floors,
    }
    with saving(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        kind = "images" if evaluator.data.units.is_images else "points"
        np.save(file.with_suffix(".npy"), samples[: NUM_KEPT[kind]])
    replace_file(file, json.dumps(result).encode())
    return result


def full_step_samples(key: str, evaluator: Evaluator) -> Array | None:
    """Some samples of the full-step sampler, from the cache; None if they are not there."""
    file = _full_step_file(key, evaluator).with_suffix(".npy")
    return np.load(file, allow_pickle=False) if file.exists() else None


def _full_step_file(key: str, evaluator: Evaluator) -> Path:
    settings = evaluator.config.model_dump(exclude={"inception_path"}).values()
    protocol = "-".join(str(value) for value in settings)
    return cache_folder() / "full_step" / f"{key}-{protocol}-{evaluator.measure.key}.json"
