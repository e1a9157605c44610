"""The data of a run as its model sees them: of a pipeline of latents these, and prompts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sft_rl.config import (
    DataConfig,
    ModelConfig,
    NoiseConfig,
    PretrainedConfig,
    Prompts,
    PromptsConfig,
    Samples,
)
from sft_rl.data import Dataset, load_dataset
from sft_rl.data.autoencoder import encoded
from sft_rl.data.image_files import LabelledImages
from sft_rl.data.images import PIXEL_MAX, ImageDataset, image_dataset
from sft_rl.data.latents import LatentDataset
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


@dataclass(frozen=True)
class Pipeline:
    """A full-step model's settings, in which what `pretrained.path` says of itself is filled in."""

    pretrained: PretrainedConfig
    model: ModelConfig
    noise: NoiseConfig
    guidance_scale: float

    @property
    def folder(self) -> Path:
        """Where it is."""
        return Path(str(self.pretrained.path))


def load_pictures(
    settings: DataConfig,
    said: PromptsConfig,
    pipeline: Pipeline,
    data: Dataset | None = None,
    *,
    device: torch.device | None = None,
    progress: Progress = silent,
    warn: Callable[[str], None] = warnings.warn,
) -> Dataset:
    """Load data as a model sees them: those of a pipeline are latents, and may have prompts.

    Args:
        settings: Of the data.
        said: Of the prompts.
        pipeline: The model.
        data: The data, where they are there already.
        device: Where a pipeline's parts compute; by default a GPU, if there is one.
        progress: Is told how many pictures are decoded, or drawn.
        warn: Is told of prompts that are too long.

    Raises:
        UserError: If they are not there, or do not go with the model.
    """
    is_text, path = pipeline.model.takes_prompts, said.path
    if not is_text and (path is not None or settings.name == "pipeline"):
        field = "data.name: pipeline" if path is None else f"prompts.path: {path}"
        raise UserError(f"{field} needs the folder of a text-to-image pipeline in pretrained.path")
    if not is_text and not is_pipeline(Path(pipeline.pretrained.path or "")):
        return data or load_dataset(settings, progress)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if settings.name == "pipeline":
        if path is None:
            raise UserError("prompts.path: data.name=pipeline draws pictures of prompts; name some")
        prompts = tuple(read_prompts(said))
        drawn = _drawn(settings, pipeline, prompts, device, progress)
        return _prompted(drawn, said, pipeline, device, warn)
    if path is not None and not said.metadata:
        raise UserError(
            "prompts.path: pictures bring their captions; leave it out, set data.name=pipeline "
            "for prompts without pictures, or say by prompts.metadata what rewards get of them"
        )
    pictures = data or load_dataset(settings, progress)
    if isinstance(pictures, LatentDataset):
        return pictures
    if isinstance(pictures, ImageDataset) and not is_text:
        return _with_latents(pictures, pipeline, device)
    if not isinstance(pictures, ImageDataset) or pictures.labels is None:
        raise UserError(
            "data.captions: a text-to-image pipeline needs pictures with captions, "
            f"data.name={settings.name} has none; see data.captions, or set data.name=pipeline "
            "and prompts.path"
        )
    return _prompted(_captioned(pictures), said, pipeline, device, warn)


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
    pictures: ImageDataset,
    said: PromptsConfig,
    pipeline: Pipeline,
    device: torch.device,
    warn: Callable[[str], None],
) -> LatentDataset:
    """Give pictures latents, and the embeddings of their captions, the names of their classes."""
    texts = pictures.classes
    data = _with_latents(pictures, pipeline, device)
    for encoder, num in num_too_long(pipeline.folder, texts).items():
        warn(f"prompts: {num:,} of {len(texts):,} are too long for the {encoder}, which cuts them")
    embeddings = _embeddings(pipeline, texts, pictures.train.shape[-1], device)
    _, tokens, width = embeddings["prompts"].shape
    prompts = Prompts(texts=texts, metadata=_said_of(texts, said), num_tokens=tokens, width=width)
    own = {"prompts": prompts, "num_classes": len(texts)}
    units = Units(data.units.samples.model_copy(update=own))
    return replace(data, units=units, embeddings=embeddings)


def _embeddings(
    pipeline: Pipeline, texts: tuple[str, ...], image_size: int, device: torch.device
) -> dict[str, Tensor]:
    """What the pipeline's denoiser keeps of some prompts, and of pictures of one size.

    Raises:
        UserError: If the pipeline has no such thing, or one of another width.
    """
    from sft_rl.networks.prompted import BY_KIND, SIZE  # here: diffusers is slow to import

    size = torch.full((len(texts) + 1, 2), float(image_size))
    found = {**embeddings_of(pipeline.folder, texts, device), SIZE: size}
    table = tuple(found["prompts"].shape)
    kept = BY_KIND[pipeline.model.kind].kept(pipeline.model.unet, table)
    for name, (*_, takes) in kept.items():
        gives = found[name].shape[-1] if name in found else "none"
        if takes != gives:
            raise UserError(
                f"model.unet: takes {takes} numbers of a prompt as {name}, the text encoders of "
                f"{pipeline.folder} give {gives}"
            )
    return {name: found[name] for name in kept}


def _said_of(texts: tuple[str, ...], settings: PromptsConfig) -> tuple[Metadata, ...]:
    """What `prompts.metadata` names of some prompts.

    Raises:
        UserError: If the file has other prompts than the pictures.
    """
    if not settings.metadata:
        return ()
    said = read_prompts(settings)
    for what, others in (
        ("captions of pictures are not in it", set(texts) - set(said)),
        ("of its prompts have no picture", set(said) - set(texts)),
    ):
        if others:
            raise UserError(
                f"prompts.path: {settings.path}: {len(others)} {what}, as {shortened(min(others))}"
            )
    return tuple(said[text] for text in texts)


def _with_latents(
    pictures: ImageDataset, pipeline: Pipeline, device: torch.device
) -> LatentDataset:
    folder, tiling = pipeline.folder, pipeline.pretrained.vae_tiling
    if pictures.config.flip:
        raise UserError("data.flip: goes with pixels, not with latents; leave it out")
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
    settings: DataConfig,
    pipeline: Pipeline,
    prompts: tuple[str, ...],
    device: torch.device,
    progress: Progress,
) -> ImageDataset:
    """Let the pipeline itself draw pictures of every prompt, as many of each."""
    num, least = settings.num_points, 2 * len(prompts)
    if num < least:
        raise UserError(
            f"data.num_points: {num} pictures of {len(prompts)} prompts; take at least {least}"
        )
    embeddings = _embeddings(pipeline, prompts, settings.image_size, device)
    tiling = pipeline.pretrained.vae_tiling
    key = {
        "format": FORMAT,
        "network": pipeline.pretrained.sha256,
        "noise": pipeline.noise.model_dump(mode="json"),
        "model": pipeline.model.model_dump(mode="json"),
        "guidance_scale": pipeline.guidance_scale,
        "pictures": [num, settings.image_size, settings.pipeline_steps, settings.seed],
        "prompts": {k: digest(v.numpy()) for k, v in embeddings.items()},
        "autoencoder": [latents_of(pipeline.folder, settings.image_size)[0].sha256, tiling],
        **arithmetic(device),
    }

    def draw() -> Checkpoint:
        pictures = _pictures(settings, pipeline, prompts, device, progress)
        return Checkpoint({"pictures": {"pictures": pictures}}, {})

    entry, _ = cached("pipeline", key, draw)
    labels = np.arange(num, dtype=np.int64) % len(prompts)
    drawn = LabelledImages(entry.tensors["pictures"]["pictures"].numpy(), labels, prompts)
    return image_dataset(drawn, settings, pixel_max=PIXEL_MAX)


@torch.no_grad()
def _pictures(
    settings: DataConfig,
    pipeline: Pipeline,
    prompts: tuple[str, ...],
    device: torch.device,
    progress: Progress,
) -> Tensor:
    """Draw pictures, uint8, shape (N, C, H, W), of the prompts in turn."""
    num, tiling = len(prompts), pipeline.pretrained.vae_tiling
    latents, shape = latents_of(pipeline.folder, settings.image_size, tiling=tiling)
    half = PIXEL_MAX / 2
    samples = Samples(
        shape=shape,
        shift=(half,),
        scale=(half,),
        pixel_max=PIXEL_MAX,
        latents=latents,
        fingerprint="",
    )
    policy = pipeline_policy(settings, pipeline, prompts, shape)
    policy, units, drawn = policy.to(device), Units(samples), []
    for start in range(0, settings.num_points, CHUNK):
        size = min(CHUNK, settings.num_points - start)
        source = generator(settings.seed, "pipeline", start, device=device)
        labels = torch.arange(start, start + size, device=device) % num
        drawn.append(torch.from_numpy(units.to_data(policy.sample(size, source, labels))))
        progress(start + size, settings.num_points, {})
    return torch.cat(drawn)


def pipeline_policy(
    settings: DataConfig, pipeline: Pipeline, prompts: tuple[str, ...], shape: tuple[int, ...]
) -> DenoisingPolicy:
    """The pipeline's own sampler, with its guidance: two calls a step."""
    num, cpu = len(prompts), torch.device("cpu")
    model, noise, scale = pipeline.model, pipeline.noise, pipeline.guidance_scale
    embeddings = _embeddings(pipeline, prompts, settings.image_size, cpu)
    table = tuple(embeddings["prompts"].shape)
    from sft_rl.pretrained.loading import load_pretrained  # here: diffusers is slow to import

    network = noise_network(model, noise, shape, table).eval()
    load_pretrained(network, pipeline.pretrained)
    for name, embedding in embeddings.items():
        network.get_buffer(name).copy_(embedding)
    if scale != 1.0:
        network = Guided(network, scale=scale, null_label=num)
    steps = spread_steps(
        path_of(noise),
        settings.pipeline_steps,
        Prediction.from_config(model),
        variance=noise.variance,
    )
    return DenoisingPolicy(network, steps, shape=shape, num_classes=num)
