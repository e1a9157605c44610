"""How good the full-step sampler is: what a few-step sampler is compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from sft_rl.config import Config
from sft_rl.data.images import ImageDataset
from sft_rl.diffusion.noise import NoiseSchedule
from sft_rl.diffusion.schedule import own_steps
from sft_rl.metrics.distances import Array
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.policy import DenoisingPolicy
from sft_rl.pretrained.training import cache_key
from sft_rl.storage.cache import cache_folder
from sft_rl.storage.files import replace_file, saving
from sft_rl.types import Metrics

Summary = dict[str, Any]
NUM_KEPT = 64
"""Images of the full-step sampler that are kept for pictures."""


def full_step_metrics(config: Config, network: nn.Module, evaluator: Evaluator) -> Summary:
    """Measure the full-step sampler and the noise floors, once for a pretrained model.

    Kept in the cache, by the model and the measuring protocol.
    """
    file = _full_step_file(config, evaluator)
    if file.exists():
        return dict(json.loads(file.read_text()))
    noise = NoiseSchedule.from_config(config.noise)
    policy = DenoisingPolicy(
        network,
        own_steps(noise),
        shape=evaluator.data.shape,
        num_classes=config.model.num_classes,
    )
    policy = policy.to(next(network.parameters()).device)
    samples = evaluator.samples(policy)
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
        if isinstance(evaluator.data, ImageDataset):
            np.save(file.with_suffix(".npy"), samples[:NUM_KEPT])
    replace_file(file, json.dumps(result).encode())
    return result


def full_step_samples(config: Config, evaluator: Evaluator) -> Array | None:
    """Some images of the full-step sampler, from the cache; None for points or if not there."""
    file = _full_step_file(config, evaluator).with_suffix(".npy")
    return np.load(file, allow_pickle=False) if file.exists() else None


def _full_step_file(config: Config, evaluator: Evaluator) -> Path:
    protocol = "-".join(
        str(v) for v in config.metrics.model_dump(exclude={"inception_path"}).values()
    )
    name = f"{cache_key(config, evaluator.data)}-{protocol}-{evaluator.measure.key}"
    return cache_folder() / "full_step" / f"{name}.json"
