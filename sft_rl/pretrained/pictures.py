"""The data of a run as its model sees them: of a pipeline of latents these, and prompts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sft_rl.config import Config, Prompts, Samples
from sft_rl.data import Dataset, load_dataset
from sft_rl.data.image_files import LabelledImages
from sft_rl.data.images import PIXEL_MAX, ImageDataset, image_dataset
from sft_rl.data.latents import LatentDataset, encoded
from sft_rl.data.prompts import Metadata, checked_prompts, plain, read_prompts
from sft_rl.data.units import Units
from sft_rl.diffusion.noise import path_of
from sft_rl.diffusion.prediction import Prediction
from sft_rl.diffusion.schedule import spread_steps
from sft_rl.errors import UserError, shortened
from sft_rl.networks import noise_network
from sft_rl.networks.guided import Guided
from sft_rl.policy import DenoisingPolicy
from sft_rl.pretrained.pipelines import (
    embeddings_of,
    is_pipeline,
    latents_of,
    num_too_long,
)
from sft_rl.seeding import generator
from sft_rl.storage.cache import arithmetic, cached, digest
from sft_rl.storage.checkpoint import Checkpoint
from sft_rl.types import Progress, silent

FORMAT = 1
"""Part of the cache's keys; counts changes of the code that give other numbers."""
CHUNK = 16
"""Pictures that a pipeline draws at once."""


def data_of(
    config: Config,
    data: Dataset | None = None,
    *,
    device: torch.device | None = None,
    progress: Progress = silent,
    warn: Callable[[str], None] = warnings.warn,
) -> Dataset:
    """Load the data a configuration names, as its model sees them.

    Args:
        config: Settings in which what `pretrained.path` says of itself is filled in.
        data: The data, where they are there already.
        device: Where a pipeline's parts compute; by default a GPU, if there is one.
        progress: Is told how many pictures are decoded, or drawn.
        warn: Is told of prompts that are too long.

    Raises:
        UserError: If they are not there, or do not go with the model.
    """
    is_text, path = config.model.takes_prompts, config.prompts.path
    if not is_text and (path is not None or config.data.name == "pipeline"):
        field = "data.name: pipeline" if path is None else f"prompts.path: {path}"
        raise UserError(f"{field} needs the folder of a text-to-image pipeline in pretrained.path")
    if not is_text and not is_pipeline(Path(config.pretrained.path or "")):
        _check_no_latents(config)
        return data or load_dataset(config.data, progress)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.data.name == "pipeline":
        if path is None:
            raise UserError("prompts.path: data.name=pipeline draws pictures of prompts; name some")
        prompts = tuple(read_prompts(config.prompts))
        return _prompted(config, _drawn(config, prompts, device, progress), device, warn)
    if path is not None and not config.prompts.metadata:
        raise UserError(
            "prompts.path: pictures bring their captions; leave it out, set data.name=pipeline "
            "for prompts without pictures, or say by prompts.metadata what rewards get of them"
        )
    pictures = data or load_dataset(config.data, progress)
    if isinstance(pictures, LatentDataset):
        return pictures
    if isinstance(pictures, ImageDataset) and not is_text:
        return _with_latents(config, pictures, device)
    if not isinstance(pictures, ImageDataset) or pictures.labels is None:
        raise UserError(
            "data.captions: a text-to-image pipeline needs pictures with captions, "
            f"data.name={config.data.name} has none; see data.captions, or set data.name=pipeline "
            "and prompts.path"
        )
    return _prompted(config, _captioned(pictures), device, warn)


def _check_no_latents(config: Config) -> None:
    """Refuse what goes with latents alone."""
    for field, given, off in (
        ("critic.space", config.critic.space, "latents"),
        ("pretrained.vae_tiling", config.pretrained.vae_tiling, False),
    ):
        if given != off:
            raise UserError(
                f"{field}: {given} needs a pipeline of latents in pretrained.path; the samples of "
                f"this run have no autoencoder, leave it at {off}"
            )


def _captioned(pictures: ImageDataset) -> ImageDataset:
    """Number labels anew, so that each has training pictures; their names are the captions."""
    assert pictures.labels is not None
    used = torch.unique(pictures.labels)
    names = pictures.classes or tuple(map(str, range(int(used.max()) + 1)))
    captions = [names[i] for i in used.tolist()]
    prompts = checked_prompts(captions, f"data.path: {pictures.config.path}: captions")
    number = {text: i for i, text in enumerate(prompts)}
    places = torch.tensor([number.get(plain(text), -1) for text in captions])
    if (places < 0).any():
        raise UserError(f"data.path: {pictures.config.path} has a caption without words")
    labels = places[torch.searchsorted(used, pictures.labels)]
    return replace(pictures, labels=labels, classes=prompts)


def _prompted(
    config: Config, pictures: ImageDataset, device: torch.device, warn: Callable[[str], None]
) -> LatentDataset:
    """Give pictures latents, and the embeddings of their captions, the names of their classes."""
    folder, texts = Path(str(config.pretrained.path)), pictures.classes
    data = _with_latents(config, pictures, device)
    for encoder, num in num_too_long(folder, texts).items():
        warn(f"prompts: {num:,} of {len(texts):,} are too long for the {encoder}, which cuts them")
    embeddings = _embeddings(config, texts, pictures.train.shape[-1], device)
    _, tokens, width = embeddings["prompts"].shape
    prompts = Prompts(texts=texts, metadata=_said_of(texts, config), num_tokens=tokens, width=width)
    own = {"prompts": prompts, "num_classes": len(texts)}
    units = Units(data.units.samples.model_copy(update=own))
    return replace(data, units=units, embeddings=embeddings)


def _embeddings(
    config: Config, texts: tuple[str, ...], image_size: int, device: torch.device
) -> dict[str, Tensor]:
    """What the pipeline's denoiser keeps of some prompts, and of pictures of one size.

    Raises:
        UserError: If the pipeline has no such thing, or one of another width.
    """
    from sft_rl.networks.prompted import BY_KIND, SIZE  # here: diffusers is slow to import

    folder = Path(str(config.pretrained.path))
    size = torch.full((len(texts) + 1, 2), float(image_size))
    found = {**embeddings_of(folder, texts, device), SIZE: size}
    table = tuple(found["prompts"].shape)
    kept = BY_KIND[config.model.kind].kept(config.model.unet, table)
    for name, (*_, takes) in kept.items():
        gives = found[name].shape[-1] if name in found else "none"
        if takes != gives:
            raise UserError(
                f"model.unet: takes {takes} numbers of a prompt as {name}, the text encoders of "
                f"{folder} give {gives}"
            )
    return {name: found[name] for name in kept}


def _said_of(texts: tuple[str, ...], config: Config) -> tuple[Metadata, ...]:
    """What `prompts.metadata` names of some prompts.

    Raises:
        UserError: If the file has other prompts than the pictures.
    """
    if not config.prompts.metadata:
        return ()
    said = read_prompts(config.prompts)
    for what, others in (
        ("captions of pictures are not in it", set(texts) - set(said)),
        ("of its prompts have no picture", set(said) - set(texts)),
    ):
        if others:
            raise UserError(
                f"prompts.path: {config.prompts.path}: {len(others)} {what}, as "
                f"{shortened(min(others))}"
            )
    return tuple(said[text] for text in texts)


def _with_latents(config: Config, pictures: ImageDataset, device: torch.device) -> LatentDataset:
    folder = Path(str(config.pretrained.path))
    if config.data.flip:
        raise UserError("data.flip: goes with pixels, not with latents; leave it out")
    tiling = config.pretrained.vae_tiling
    latents, shape = latents_of(folder, pictures.train.shape[-1], tiling=tiling)
    if pictures.train.shape[1] != latents.image_shape[0]:
        raise UserError(
            f"data.channels: the autoencoder of {folder} takes {latents.image_shape[0]}, got "
            f"{pictures.train.shape[1]}"
        )
    own = pictures.units.samples
    vae = [latents.sha256, tiling]
    key = {"format": FORMAT, "autoencoder": vae, "pictures": own.fingerprint}

    def encode() -> Checkpoint:
        parts = [
            encoded(latents, pictures.units.to_model(part.to(device))).cpu()
            for part in torch.split(pictures.train, CHUNK)
        ]
        return Checkpoint({"latents": {"latents": torch.cat(parts)}}, {})

    entry, _ = cached("latents", {**key, **arithmetic(device)}, encode)
    samples = Samples(**{**own.model_dump(), "shape": shape, "latents": latents})
    kept = {f.name: getattr(pictures, f.name) for f in fields(pictures)}
    return LatentDataset(
        **{**kept, "units": Units(samples)}, latents=entry.tensors["latents"]["latents"]
    )


def _drawn(
    config: Config, prompts: tuple[str, ...], device: torch.device, progress: Progress
) -> ImageDataset:
    """Let the pipeline itself draw pictures of every prompt, as many of each."""
    num, least = config.data.num_points, 2 * len(prompts)
    if num < least:
        raise UserError(
            f"data.num_points: {num} pictures of {len(prompts)} prompts; take at least {least}"
        )
    folder, settings = Path(str(config.pretrained.path)), config.data
    embeddings = _embeddings(config, prompts, settings.image_size, device)
    tiling = config.pretrained.vae_tiling
    key = {
        "format": FORMAT,
        "network": config.pretrained.sha256,
        "noise": config.noise.model_dump(mode="json"),
        "model": config.model.model_dump(mode="json"),
        "guidance_scale": config.sampler.guidance_scale,
        "pictures": [num, settings.image_size, settings.pipeline_steps, settings.seed],
        "prompts": {k: digest(v.numpy()) for k, v in embeddings.items()},
        "autoencoder": [latents_of(folder, settings.image_size)[0].sha256, tiling],
        **arithmetic(device),
    }

    def draw() -> Checkpoint:
        pictures = _pictures(config, prompts, device, progress)
        return Checkpoint({"pictures": {"pictures": pictures}}, {})

    entry, _ = cached("pipeline", key, draw)
    labels = np.arange(num, dtype=np.int64) % len(prompts)
    drawn = LabelledImages(entry.tensors["pictures"]["pictures"].numpy(), labels, prompts)
    return image_dataset(drawn, settings, pixel_max=PIXEL_MAX)


@torch.no_grad()
def _pictures(
    config: Config, prompts: tuple[str, ...], device: torch.device, progress: Progress
) -> Tensor:
    """Draw pictures, uint8, shape (N, C, H, W), of the prompts in turn."""
    folder, settings, num = Path(str(config.pretrained.path)), config.data, len(prompts)
    tiling = config.pretrained.vae_tiling
    latents, shape = latents_of(folder, settings.image_size, tiling=tiling)
    half = PIXEL_MAX / 2
    samples = Samples(
        shape=shape,
        shift=(half,),
        scale=(half,),
        pixel_max=PIXEL_MAX,
        latents=latents,
        fingerprint="",
    )
    policy = pipeline_policy(config, prompts, shape, num_steps=settings.pipeline_steps)
    policy, units, drawn = policy.to(device), Units(samples), []
    for start in range(0, settings.num_points, CHUNK):
        size = min(CHUNK, settings.num_points - start)
        source = generator(settings.seed, "pipeline", start, device=device)
        labels = torch.arange(start, start + size, device=device) % num
        drawn.append(torch.from_numpy(units.to_data(policy.sample(size, source, labels))))
        progress(start + size, settings.num_points, {})
    return torch.cat(drawn)


def pipeline_policy(
    config: Config, prompts: tuple[str, ...], shape: tuple[int, ...], *, num_steps: int
) -> DenoisingPolicy:
    """The pipeline's own sampler, with its guidance: two calls a step, of `num_steps`."""
    num, cpu = len(prompts), torch.device("cpu")
    embeddings = _embeddings(config, prompts, config.data.image_size, cpu)
    table = tuple(embeddings["prompts"].shape)
    from sft_rl.pretrained.loading import load_pretrained  # here: diffusers is slow to import

    network = noise_network(config.model, config.noise, shape, table).eval()
    load_pretrained(network, config.pretrained)
    for name, embedding in embeddings.items():
        network.get_buffer(name).copy_(embedding)
    if config.sampler.guidance_scale != 1.0:
        network = Guided(network, scale=config.sampler.guidance_scale, null_label=num)
    prediction, variance = Prediction.from_config(config.model), config.noise.variance
    steps = spread_steps(path_of(config.noise), num_steps, prediction, variance=variance)
    return DenoisingPolicy(network, steps, shape=shape, num_classes=num)
