"""The full-step model: trained once, then cached by a hash of what determines it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import sft_rl
from sft_rl.config import OF_PROMPTS, ModelConfig, NoiseConfig, PretrainedConfig, PretrainingConfig
from sft_rl.data import Dataset
from sft_rl.diffusion.loss import matching_loss
from sft_rl.diffusion.noise import path_of
from sft_rl.diffusion.prediction import Prediction
from sft_rl.learning.optim import Adam, RMSprop, decay_factor, update_average
from sft_rl.networks import noise_network
from sft_rl.networks.guided import Guided
from sft_rl.networks.own import OwnNetwork, source_of
from sft_rl.pretrained.states import load_own_weights
from sft_rl.pretrained.unfinished import Unfinished
from sft_rl.seeding import derive_seed, generator, random_labels
from sft_rl.storage.cache import Key, arithmetic, cached, digest, unfinished
from sft_rl.storage.checkpoint import Checkpoint, state_sha256
from sft_rl.types import Progress

REPORT_EVERY = 100
FORMAT = 3
"""Part of the cache's key; counts changes of the code that give other weights or names."""
OF_THE_MLP = {"num_fourier", "embedding_dim"}
UNUSED_ELSEWHERE = {
    "compile",
    "channels_last",
    "gradient_checkpointing",
    "clip_x0",
    "factory",
    "weights",
    "classes",
}
UNUSED_OF_MODEL = {
    "mlp": {"unet", "precision", *UNUSED_ELSEWHERE},
    "paper_mlp": {"unet", "precision", *OF_THE_MLP, *UNUSED_ELSEWHERE},
    "unet": {"width", "depth", *OF_THE_MLP, *UNUSED_ELSEWHERE},
    "dit": {"width", "depth", *OF_THE_MLP, *UNUSED_ELSEWHERE},
    "edm": {"width", "depth", "precision", *OF_THE_MLP, *UNUSED_ELSEWHERE},
    **{kind: {"width", "depth", *OF_THE_MLP, *UNUSED_ELSEWHERE} for kind in OF_PROMPTS},
    "own": set(ModelConfig.model_fields)
    - {"kind", "prediction", "sigma_data", "factory", "classes"},
}
"""Settings that the full-step model of a kind does not depend on; all others are in its key."""
OF_THE_BETAS, OF_VE = {"schedule", "beta_start", "beta_end", "betas"}, {"sigma_min", "sigma_max"}
UNUSED_OF_PATH = {
    "vp": {*OF_VE, "shift"},
    "ve": {*OF_THE_BETAS, "shift"},
    "flow": OF_THE_BETAS | OF_VE,
}
"""The same of the forward process."""


def pretrained_key(
    *,
    model: ModelConfig,
    noise: NoiseConfig,
    pretraining: PretrainingConfig,
    pretrained: PretrainedConfig,
    data: Dataset,
) -> Key:
    """All settings and data that determine a full-step model, wherever it is computed."""
    of_model = set(UNUSED_OF_MODEL[model.kind])
    if model.prediction != "edm":
        of_model.add("sigma_data")
    of_pretraining = {"guidance_iterations"}
    if not (model.num_classes and model.null_class):
        of_model.add("null_class")
        of_pretraining.add("label_dropout")
    of_noise = {"variance", *UNUSED_OF_PATH[noise.path]}
    if noise.shift == 1.0:
        of_noise.add("shift")
    if noise.schedule == "cosine" or noise.betas is not None:
        of_noise |= {"beta_start", "beta_end"}
    parts = {
        "format": FORMAT,
        "model": model.model_dump(exclude=of_model),
        "noise": noise.model_dump(exclude=of_noise),
    }
    if model.factory is not None:
        parts["source"] = source_of(model.factory)
    if pretrained.sha256 is not None:
        return {**parts, "sha256": pretrained.sha256}
    samples = data.units.samples.model_dump(include={"shape", "shift", "scale", "fingerprint"})
    parts |= {"pretraining": pretraining.model_dump(exclude=of_pretraining), "data": samples}
    if model.num_classes and data.labels is not None:
        parts["labels"] = digest(data.labels.numpy())
    if data.conditions is not None and data.labels is not None:
        parts["conditions"] = digest(data.labels.numpy())
    return parts


def keep_conditions(network: nn.Module, data: Dataset) -> None:
    """Let a network keep what of the data it is conditional on: vectors, or prompts' embeddings."""
    if data.conditions is not None:
        network.get_buffer("conditions").copy_(data.conditions)
    for name, embedding in (data.embeddings or {}).items():
        network.get_buffer(name).copy_(embedding)


def pretrained_network(
    *,
    model: ModelConfig,
    noise: NoiseConfig,
    pretraining: PretrainingConfig,
    pretrained: PretrainedConfig,
    data: Dataset,
    device: torch.device,
    progress: Progress,
    warn: Callable[[str], None] = warnings.warn,
) -> tuple[nn.Module, bool]:
    """Return the full-step network: the one of `pretrained.path`, of the cache, or trained now.

    A damaged cache entry is trained again and replaced; `warn` is told.

    Returns:
        The network on `device`, in evaluation mode, and whether it was there already.
    """
    network = noise_network(model, noise, data.shape, data.units.samples.table).to(device).eval()
    keep_conditions(network, data)
    if pretrained.path is not None:
        from sft_rl.pretrained.loading import load_pretrained  # here: diffusers is slow to import

        load_pretrained(network, pretrained)
        return network, True
    if isinstance(network, OwnNetwork) and model.weights is not None:
        if model.weights != "factory":
            load_own_weights(network.network, Path(model.weights))
        return network, True

    def train() -> Checkpoint:
        trained = pretrain(
            model,
            noise,
            pretraining,
            data,
            device=device,
            progress=progress,
            place=unfinished("pretrained", key),
        )
        return Checkpoint({"network": trained.state_dict()}, {"version": sft_rl.__version__})

    key = pretrained_key(
        model=model, noise=noise, pretraining=pretraining, pretrained=pretrained, data=data
    )
    key |= arithmetic(device)
    entry, there = cached("pretrained", key, train, warn=warn)
    network.load_state_dict(entry.tensors["network"])
    return network, there


def guided_network(
    network: nn.Module,
    scale: float,
    *,
    model: ModelConfig,
    noise: NoiseConfig,
    pretraining: PretrainingConfig,
    data: Dataset,
    progress: Progress,
    warn: Callable[[str], None] = warnings.warn,
) -> nn.Module:
    """Make one call of the two of classifier-free guidance, once for a network and a scale.

    Args:
        network: The full-step network on its device, in evaluation mode; it stays as it is.
        scale: Of :class:`sft_rl.networks.guided.Guided`.
        model: What it predicts, and its classes.
        noise: The path it was trained on.
        pretraining: How it is fitted.
        data: Whose noised samples it is fitted on.
        progress: Is told how far that is.
        warn: Is told of a cache entry that is damaged.

    Returns:
        A network of the same kind, in evaluation mode.
    """
    guided = Guided(network, scale=scale, null_label=model.num_classes)
    device = next(network.parameters()).device
    key: Key = {
        "format": FORMAT,
        "network": state_sha256(network),
        "scale": scale,
        "model": model.model_dump(mode="json"),
        "noise": noise.model_dump(mode="json"),
        "pretraining": pretraining.model_dump(),
        "data": data.fingerprint,
        **arithmetic(device),
    }
    if model.factory is not None:
        key |= {"source": source_of(model.factory)}
    place = unfinished("guided", key)

    def fit() -> Checkpoint:
        fitted = pretrain(
            model,
            noise,
            pretraining,
            data,
            device=device,
            progress=progress,
            place=place,
            guided=guided,
        )
        return Checkpoint({"network": fitted.state_dict()}, {"version": sft_rl.__version__})

    entry, _ = cached("guided", key, fit, warn=warn)
    found = copy.deepcopy(network)
    found.load_state_dict(entry.tensors["network"])
    return found


def pretrain(
    model: ModelConfig,
    noise: NoiseConfig,
    options: PretrainingConfig,
    data: Dataset,
    *,
    device: torch.device,
    progress: Progress,
    place: Path | None = None,
    guided: Guided | None = None,
) -> nn.Module:
    """Train a denoising network from scratch; return it with its averaged weights.

    With a network that is `guided` it starts from its weights and learns its prediction, so that
    one call does for two (Meng et al., 2023).

    With a `place` it keeps a checkpoint there now and then, from which an interrupted one goes on
    to the same weights. Images lie row by row meanwhile, whatever `model.channels_last` says: it
    changes the last bits.
    """
    model = model.model_copy(update={"channels_last": False})
    with torch.random.fork_rng():  # initial weights and dropout draw from torch's own generator
        torch.manual_seed(derive_seed(options.seed, "pretraining weights"))
        return _pretrained(
            model,
            noise,
            options,
            data,
            device=device,
            progress=progress,
            place=place,
            guided=guided,
        )


def _pretrained(
    model: ModelConfig,
    noise: NoiseConfig,
    options: PretrainingConfig,
    data: Dataset,
    *,
    device: torch.device,
    progress: Progress,
    place: Path | None,
    guided: Guided | None,
) -> nn.Module:
    if guided is not None:
        network = copy.deepcopy(guided.network).requires_grad_(True)
    else:
        network = noise_network(model, noise, data.shape, data.units.samples.table).to(device)
        keep_conditions(network, data)
    path, prediction = path_of(noise), Prediction.from_config(model)
    source = generator(options.seed, "pretraining", device=device)
    average = copy.deepcopy(network).requires_grad_(False).eval()
    optimizer: torch.optim.Optimizer
    if options.optimizer == "adam":
        optimizer = Adam(
            network.parameters(), lr=options.learning_rate, betas=(0.9, 0.99), fused=True
        )
    else:
        optimizer = RMSprop(network.parameters(), lr=options.learning_rate)
    num_labels = model.num_classes if data.conditions is None else len(data.conditions)
    kept = Unfinished(place, {"network": network, "average": average}, optimizer, source)
    num_iterations = options.num_iterations if guided is None else options.guidance_iterations
    for iteration in range(kept.resume(), num_iterations):
        factor = decay_factor(options.lr_decay, iteration / num_iterations)
        factor *= min((iteration + 1) / (options.warmup + 1), 1.0)
        optimizer.param_groups[0]["lr"] = options.learning_rate * factor
        labels = random_labels(num_labels, options.batch_size, source)
        if data.conditions is not None:
            labels = data.conditions.to(device)[labels]
        x_0 = data.batch(options.batch_size, source, labels)
        if options.label_dropout and guided is None and labels is not None:
            dropped = torch.rand(len(labels), generator=source, device=device)
            labels = labels.masked_fill(dropped < options.label_dropout, model.num_classes)
        loss = matching_loss(
            network,
            x_0,
            path=path,
            prediction=prediction,
            generator=source,
            num_times=options.num_times,
            continuous=options.continuous_time,
            labels=labels,
            teacher=guided,
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), options.max_grad_norm)
        optimizer.step()
        update_average(average, network, decay=options.ema_decay, num_updates=iteration)
        done = iteration + 1
        kept.keep(done)
        if done % REPORT_EVERY == 0 or done == num_iterations:
            progress(done, num_iterations, {"pretraining_loss": loss.item()})
    kept.remove()
    return average.requires_grad_(True)
