"""Folders of pipelines of latents: what their parts are, and what they make of prompts."""

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
from sft_rl.pretrained.states import file_sha256
from sft_rl.storage.cache import arithmetic, cached
from sft_rl.storage.checkpoint import Checkpoint

SUPPORTED = {
    "StableDiffusionPipeline": {
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "scheduler": "",
    },
    "DiTPipeline": {
        "transformer": "DiTTransformer2DModel",
        "vae": "AutoencoderKL",
        "scheduler": "",
    },
}
"""Parts of pipelines that are read, with the classes that they must be of."""
FORMAT = 1
"""Part of the cache's key; counts changes of the code that give other embeddings."""
BATCH = 32


def is_pipeline(folder: Path) -> bool:
    """Whether a folder is of a pipeline with an autoencoder, whatever else it has."""
    return (folder / "vae").is_dir()


def check_pipeline(folder: Path) -> None:
    """Refuse a pipeline of another kind, or one with parts missing.

    Raises:
        UserError: Saying which are supported, or what is missing.
    """
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    if kind not in SUPPORTED:
        raise UserError(
            f"pretrained.path: {folder} is a {kind}; of pipelines of latents, supported are "
            f"{' and '.join(SUPPORTED)}"
        )
    for part, expected in SUPPORTED[kind].items():
        found = (index.get(part) or [None, None])[1]
        if not (folder / part).is_dir() or found is None:
            raise UserError(f"pretrained.path: {folder} has no {part}")
        if expected and found.removesuffix("Fast") != expected:
            raise UserError(
                f"pretrained.path: the {part} of {folder} is a {found}; supported is {expected}"
            )


def latents_of(folder: Path, image_size: int) -> tuple[Latents, tuple[int, int, int]]:
    """How a pipeline's autoencoder makes latents of square pictures, and their shape.

    Raises:
        UserError: If it does not halve them evenly, or there are no weights.
    """
    config = read_json(folder / "vae" / "config.json")
    factor = 2 ** (len(config["block_out_channels"]) - 1)
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
    )
    return latents, (config["latent_channels"], image_size // factor, image_size // factor)


def prompt_size(folder: Path) -> tuple[int, int]:
    """Tokens of a prompt, and numbers of a token, of a pipeline's text encoder."""
    config = read_json(folder / "text_encoder" / "config.json")
    return config["max_position_embeddings"], config["hidden_size"]


def embeddings_of(folder: Path, prompts: tuple[str, ...], device: torch.device) -> Tensor:
    """What a pipeline's text encoder makes of prompts and of the empty one behind them.

    Computed once and kept in the cache.

    Args:
        folder: The pipeline's.
        prompts: K texts.
        device: Where to compute.

    Returns:
        Shape (K + 1, tokens, width), float32, on the CPU.

    Raises:
        UserError: If text encoder or tokenizer are not there, or transformers is not installed.
    """
    words = sorted(p for p in (folder / "tokenizer").iterdir() if p.is_file())
    key = {
        "format": FORMAT,
        "text_encoder": file_sha256(*_weights(folder / "text_encoder", "model")),
        "tokenizer": file_sha256(*words),
        "prompts": prompts,
        **arithmetic(device),
    }

    def make() -> Checkpoint:
        embeddings = _embedded(folder, [*prompts, ""], device)
        return Checkpoint({"embeddings": {"embeddings": embeddings}}, {})

    entry, _ = cached("prompts", key, make)
    return entry.tensors["embeddings"]["embeddings"]


def num_too_long(folder: Path, prompts: tuple[str, ...]) -> int:
    """How many prompts are longer than the text encoder takes: their ends are cut off."""
    tokenizer, _ = _text_parts(folder, with_encoder=False)
    most = tokenizer.model_max_length
    return sum(len(ids) > most for ids in tokenizer(list(prompts))["input_ids"])


@torch.no_grad()
def _embedded(folder: Path, prompts: list[str], device: torch.device) -> Tensor:
    tokenizer, encoder = _text_parts(folder)
    encoder = encoder.to(device).eval()
    parts = []
    for start in range(0, len(prompts), BATCH):
        tokens = tokenizer(
            prompts[start : start + BATCH],
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).to(device)
        asks = getattr(encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask if asks else None
        parts.append(encoder(tokens.input_ids, attention_mask=mask)[0].float().cpu())
    return torch.cat(parts)


def _text_parts(folder: Path, *, with_encoder: bool = True) -> tuple[Any, Any]:
    try:
        from transformers import CLIPTextModel, CLIPTokenizer  # here: slow to import
    except ImportError as error:
        raise UserError(
            "pretrained.path: prompts need transformers, which is not installed: pip install "
            "'sft-rl[text]'"
        ) from error
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        if not with_encoder:
            return tokenizer, None
        with _without_bars():
            encoder = CLIPTextModel.from_pretrained(
                folder / "text_encoder", use_safetensors=True, local_files_only=True
            )
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise UserError(
            f"pretrained.path: cannot read the text encoder of {folder}: {first_line(error)}"
        ) from error
    return tokenizer, encoder


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers' progress from between our lines."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


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
