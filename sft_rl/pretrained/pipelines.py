"""Folders of pipelines of latents: whether their parts are there, and what they make of prompts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sft_rl.config import Latents
from sft_rl.errors import UserError, first_line
from sft_rl.pretrained.folders import read_json
from sft_rl.pretrained.pipeline_kinds import KINDS, PipelineKind
from sft_rl.pretrained.states import file_sha256
from sft_rl.storage.cache import arithmetic, cached
from sft_rl.storage.checkpoint import Checkpoint

FORMAT = 2
"""Part of the cache's key; counts changes of the code that give other embeddings."""
BATCH = 32


def is_pipeline(folder: Path) -> bool:
    """Whether a folder is of a pipeline with an autoencoder, there or missing."""
    if (folder / "vae").is_dir():
        return True
    return (folder / "model_index.json").is_file() and "vae" in _index(folder)


def kind_of(folder: Path) -> PipelineKind:
    """Return what is known of a folder's kind of pipelines.

    Raises:
        UserError: Saying which are supported.
    """
    name = _index(folder).get("_class_name")
    if name not in KINDS:
        raise UserError(
            f"pretrained.path: {folder} is a {name}; of pipelines of latents, supported are "
            f"{', '.join(KINDS)}"
        )
    return KINDS[name]


def check_pipeline(folder: Path) -> None:
    """Refuse a pipeline of another kind, or one with parts missing.

    Raises:
        UserError: Saying which are supported, or what is missing.
    """
    kind = kind_of(folder)
    for part, expected in {**kind.parts, **kind.optional}.items():
        found = _class_of(folder, part)
        if found is None and part in kind.optional:
            continue
        if found is None or not (folder / part).is_dir():
            raise UserError(f"pretrained.path: {folder} has no {part}")
        if expected and found.removesuffix("Fast") != expected:
            raise UserError(
                f"pretrained.path: the {part} of {folder} is a {found}; supported is {expected}"
            )


def latents_of(
    folder: Path, image_size: int, *, tiling: bool = False
) -> tuple[Latents, tuple[int, int, int]]:
    """How a pipeline's autoencoder makes latents of square pictures, and their shape.

    Args:
        folder: The pipeline's.
        image_size: Width of a picture.
        tiling: Whether it works on overlapping tiles.

    Raises:
        UserError: If it does not halve them evenly, or there are no weights.
    """
    config = read_json(folder / "vae" / "config.json")
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    if config.get("latents_mean") is not None:
        raise UserError(
            f"pretrained.path: the autoencoder of {folder} has latents_mean; supported are those "
            "with scaling_factor and shift_factor alone"
        )
    if image_size % factor:
        raise UserError(
            f"data.image_size: the autoencoder of {folder} makes one number of {factor}x{factor} "
            f"pixels, got {image_size}; take a multiple"
        )
    latents = Latents(
        path=str(folder / "vae"),
        sha256=file_sha256(*_weights(folder / "vae", "diffusion_pytorch_model")),
        scale=config.get("scaling_factor", 0.18215),
        shift=config.get("shift_factor") or 0.0,
        image_shape=(config["out_channels"], image_size, image_size),
        tiling=tiling,
    )
    return latents, (config["latent_channels"], image_size // factor, image_size // factor)


def embeddings_of(
    folder: Path, prompts: tuple[str, ...], device: torch.device
) -> dict[str, Tensor]:
    """What a pipeline's own ``encode_prompt`` makes of prompts and of the empty one behind them.

    Computed once and kept in the cache.

    Args:
        folder: The pipeline's.
        prompts: K texts.
        device: Where to compute.

    Returns:
        Float32, on the CPU: ``prompts`` of shape (K + 1, tokens, width), and what else there is
        of this kind of pipelines, each with a first dimension of K + 1.

    Raises:
        UserError: If text encoders or tokenizers are not there, or transformers is not installed.
    """
    files = {}
    for part in _of_text(folder):
        words = sorted(p for p in (folder / part).iterdir() if p.is_file())
        is_encoder = part.startswith("text_encoder")
        files[part] = file_sha256(*(_weights(folder / part, "model") if is_encoder else words))
    key = {"format": FORMAT, **files, "prompts": prompts, **arithmetic(device)}

    def make() -> Checkpoint:
        return Checkpoint({"embeddings": _embedded(folder, [*prompts, ""], device)}, {})

    entry, _ = cached("prompts", key, make)
    return entry.tensors["embeddings"]


def num_too_long(folder: Path, prompts: tuple[str, ...]) -> dict[str, int]:
    """How many prompts are longer than each text encoder takes: it does not see their ends."""
    found, longest = {}, kind_of(folder).arguments.get("max_sequence_length", 10**9)
    for part in _of_text(folder):
        if part.startswith("tokenizer"):
            tokenizer = _read(folder, part)
            most = min(tokenizer.model_max_length, longest)
            num = sum(len(ids) > most for ids in tokenizer(list(prompts))["input_ids"])
            if num:
                found[part.replace("tokenizer", "text_encoder")] = num
    return found


@torch.no_grad()
def _embedded(folder: Path, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    kind, pipeline = kind_of(folder), _of_text_alone(folder, device)
    parts: dict[str, list[Tensor]] = {name: [] for name in kind.embeddings}
    for start in range(0, len(prompts), BATCH):
        made = pipeline.encode_prompt(
            prompt=prompts[start : start + BATCH],
            device=device,
            do_classifier_free_guidance=False,
            **kind.arguments,
        )
        for name, place in kind.embeddings.items():
            parts[name].append(made[place].float().cpu())
    embeddings = {name: torch.cat(tensors) for name, tensors in parts.items()}
    default = pipeline.config.get("force_zeros_for_empty_prompt", False)
    if _index(folder).get("force_zeros_for_empty_prompt", default):  # so XL guides itself
        for tensor in embeddings.values():
            tensor[-1] = 0.0
    return embeddings


def _of_text_alone(folder: Path, device: torch.device) -> Any:
    """The pipeline with text encoders and tokenizers alone, and a denoiser without weights."""
    import diffusers  # here: slow to import

    kind, index = kind_of(folder), _index(folder)
    with torch.device("meta"):  # it is asked for its settings
        denoiser = getattr(diffusers, kind.parts[kind.denoiser])
        unet = denoiser.from_config(read_json(folder / kind.denoiser / "config.json"))
    parts = dict.fromkeys(name for name, value in index.items() if isinstance(value, list))
    parts |= dict.fromkeys(kind.optional)
    parts |= {part: _read(folder, part) for part in _of_text(folder)}
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.to(device).eval()
    options = {"requires_safety_checker": False} if "safety_checker" in parts else {}
    with _quietly():
        pipeline = getattr(diffusers, index["_class_name"])
        return pipeline(**{**parts, kind.denoiser: unet}, **options)


def _of_text(folder: Path) -> list[str]:
    """Text encoders and tokenizers that a pipeline has."""
    return [part for part in kind_of(folder).of_text if _class_of(folder, part) is not None]


def _read(folder: Path, part: str) -> Any:
    """Read a text encoder, in float32, or a tokenizer."""
    try:
        import transformers  # here: slow to import
    except ImportError as error:
        raise UserError(
            "pretrained.path: prompts need transformers, which is not installed: pip install "
            "'sft-rl[text]'"
        ) from error
    kind = getattr(transformers, kind_of(folder).of_text[part])
    options: dict[str, Any] = {}
    if part.startswith("text_encoder"):
        options = {"use_safetensors": True, "dtype": torch.float32}
    try:
        with _quietly():
            return kind.from_pretrained(folder / part, local_files_only=True, **options)
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise UserError(
            f"pretrained.path: cannot read the {part} of {folder}: {first_line(error)}"
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep progress of transformers from between our lines."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _index(folder: Path) -> dict[str, Any]:
    return read_json(folder / "model_index.json")


def _class_of(folder: Path, part: str) -> str | None:
    found: str | None = (_index(folder).get(part) or [None, None])[1]
    return found


def _weights(folder: Path, name: str) -> list[Path]:
    """Files of a part's weights.

    Raises:
        UserError: If there are none of safetensors.
    """
    files = sorted(folder.glob(f"{name}*.safetensors"))
    if not files:
        others = ", ".join(sorted(p.name for p in folder.glob("*") if p.suffix != ".json"))
        raise UserError(
            f"pretrained.path: no {name}.safetensors in {folder}; weights are read from "
            f"safetensors only; there are: {others or 'none'}"
        )
    return files
