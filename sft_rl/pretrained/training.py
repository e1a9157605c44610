"""The full-step model: trained once, then cached by a hash of what determines it."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable

import torch
from torch import nn

import sft_rl
from sft_rl.config import ModelConfig, NoiseConfig, PretrainedConfig, PretrainingConfig
from sft_rl.data import Dataset
from sft_rl.diffusion.loss import epsilon_matching_loss
from sft_rl.diffusion.noise import NoiseSchedule
from sft_rl.learning.optim import decay_factor, update_average
from sft_rl.networks import noise_network
from sft_rl.seeding import derive_seed, generator, random_labels
from sft_rl.storage.cache import cache_folder
from sft_rl.storage.checkpoint import Checkpoint, DamagedCheckpoint, load, save

Progress = Callable[[int, int, dict[str, float]], None]
REPORT_EVERY = 100
FORMAT = 2
"""Part of the cache's key; counts changes of the code that give other weights or names."""


def cache_key(
    *,
    model: ModelConfig,
    noise: NoiseConfig,
    pretraining: PretrainingConfig,
    pretrained: PretrainedConfig,
    data: Dataset,
) -> str:
    """Hash of all that determines a full-step model: its settings and its data."""
    parts = {
        "format": FORMAT,
        "noise": noise.model_dump(),
        "model": model.model_dump(exclude={"precision", "compile"}),
        "pretraining": pretraining.model_dump(),
        "data": data.fingerprint,
    }
    if model.num_classes and data.labels is not None:
        parts["labels"] = hashlib.sha256(data.labels.numpy().tobytes()).hexdigest()
    if pretrained.sha256 is not None:
        parts["pretraining"] = pretrained.sha256
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def pretrained_network(
    *,
    model: ModelConfig,
    noise: NoiseConfig,
    pretraining: PretrainingConfig,
    pretrained: PretrainedConfig,
    data: Dataset,
    device: torch.device,
    progress: Progress,
) -> tuple[nn.Module, bool]:
    """Return the full-step network: the one of `pretrained.path`, of the cache, or trained now.

    A damaged cache entry is trained again and replaced.

    Returns:
        The network on `device`, and whether it was there already.
    """
    network = noise_network(model, noise, data.shape).to(device)
    if pretrained.path is not None:
        from sft_rl.pretrained.loading import load_pretrained  # here: diffusers is slow to import

        load_pretrained(network, pretrained)
        return network, True
    key = cache_key(
        model=model, noise=noise, pretraining=pretraining, pretrained=pretrained, data=data
    )
    folder = cache_folder() / "pretrained" / key
    if folder.exists():
        try:
            network.load_state_dict(load(folder).tensors["network"])
            return network, True
        except DamagedCheckpoint:
            pass
    network = pretrain(model, noise, pretraining, data, device=device, progress=progress)
    sections = {"model": model, "noise": noise, "pretraining": pretraining, "data": data.config}
    meta = {
        "config": {name: section.model_dump(mode="json") for name, section in sections.items()},
        "version": sft_rl.__version__,
    }
    save(folder, Checkpoint({"network": network.state_dict()}, meta))
    return network, False


def pretrain(
    model: ModelConfig,
    noise: NoiseConfig,
    options: PretrainingConfig,
    data: Dataset,
    *,
    device: torch.device,
    progress: Progress,
) -> nn.Module:
    """Train a noise-prediction network from scratch; return its averaged weights."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(options.seed, "pretraining weights"))
        network = noise_network(model, noise, data.shape).to(device)
    forward_process = NoiseSchedule.from_config(noise)
    source = generator(options.seed, "pretraining", device=device)
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer: torch.optim.Optimizer
    if options.optimizer == "adam":
        optimizer = torch.optim.Adam(
            network.parameters(), lr=options.learning_rate, betas=(0.9, 0.99), fused=True
        )
    else:
        optimizer = torch.optim.RMSprop(network.parameters(), lr=options.learning_rate)
    for iteration in range(options.num_iterations):
        factor = decay_factor(options.lr_decay, iteration / options.num_iterations)
        factor *= min((iteration + 1) / (options.warmup + 1), 1.0)
        optimizer.param_groups[0]["lr"] = options.learning_rate * factor
        labels = random_labels(model.num_classes, options.batch_size, source)
        loss = epsilon_matching_loss(
            network,
            data.batch(options.batch_size, source, labels),
            noise=forward_process,
            generator=source,
            num_times=options.num_times,
            continuous=options.continuous_time,
            labels=labels,
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), options.max_grad_norm)
        optimizer.step()
        update_average(average, network, decay=options.ema_decay, num_updates=iteration)
        done = iteration + 1
        if done % REPORT_EVERY == 0 or done == options.num_iterations:
            progress(done, options.num_iterations, {"pretraining_loss": loss.item()})
    return average.requires_grad_(True)
