"""From pictures to latents and back, by the autoencoder of a pipeline."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sft_rl.config import Latents
from sft_rl.errors import UserError, first_line

BATCH, PIXELS = 8, 8 * 256**2
"""Pictures, and pixels, that go through the autoencoder at once, but one picture at least."""


@lru_cache(maxsize=2)
def autoencoder(path: str, device: str, *, tiling: bool = False) -> Any:
    """Load an AutoencoderKL of diffusers, frozen, once a process and device.

    With `tiling` it works on overlapping tiles, which are blended.

    Raises:
        UserError: If it is not there, or damaged.
    """
    from diffusers import AutoencoderKL  # here: slow to import

    try:
        vae = AutoencoderKL.from_pretrained(path, use_safetensors=True, local_files_only=True)
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise UserError(
            f"pretrained.path: no autoencoder in {path}: {first_line(error)}"
        ) from error
    if tiling:
        vae.enable_tiling()
    return vae.to(device).eval().requires_grad_(False)


@torch.no_grad()
def encoded(latents: Latents, pictures: Tensor) -> Tensor:
    """Encode pictures (N, C, H, W) of -1..1; each one's most likely latent, model units."""
    vae = autoencoder(latents.path, str(pictures.device), tiling=latents.tiling)
    parts = torch.split(pictures, at_once(latents))
    modes = [vae.encode(part).latent_dist.mode() for part in parts]
    return (torch.cat(modes) - latents.shift) * latents.scale


def decoded(latents: Latents, samples: Tensor) -> Tensor:
    """Decode samples (N, *shape) in model units; pictures (N, C, H, W) of about -1..1.

    For a gradient the decoder's activations are those of one part at a time: several parts are
    decoded again on the way back.
    """
    vae = autoencoder(latents.path, str(samples.device), tiling=latents.tiling)
    lead = samples.shape[:-3]
    flat = samples.reshape(-1, *samples.shape[-3:]) / latents.scale + latents.shift
    parts = torch.split(flat, at_once(latents))

    def decode(part: Tensor) -> Tensor:
        return vae.decode(part).sample  # type: ignore[no-any-return]

    if len(parts) > 1 and flat.requires_grad and torch.is_grad_enabled():
        pictures = [checkpoint(decode, part, use_reentrant=False) for part in parts]
    else:
        pictures = [decode(part) for part in parts]
    return torch.cat(pictures).reshape(*lead, *latents.image_shape)


def at_once(latents: Latents) -> int:
    """How many pictures go through the autoencoder at once."""
    _, height, width = latents.image_shape
    return max(min(BATCH, PIXELS // (height * width)), 1)
