"""Pretrain a small text-to-image pipeline from nothing, of glyphs, in Stable Diffusion's format.

    python -m examples.glyph_pipeline FOLDER

Digits are drawn in grey, 16x16 pixels, thin or thick, leaning left or right, and captioned: "a thin
seven leaning right". An autoencoder, then a text encoder and a U-Net together are trained on them.
Into FOLDER come

- ``pipeline``: a StableDiffusionPipeline of an AutoencoderKL (latents 8x4x4), a CLIP text encoder
  with a tokenizer of its own, a UNet2DConditionModel that knows the empty prompt, and DDIM;
- ``pictures.parquet``: pictures with captions, for the critic;
- ``prompts.csv``: the 40 prompts, with what rewards may ask: digit, weight and lean.
"""

from __future__ import annotations

import argparse
import copy
import io
import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sft_rl.data.glyphs import FONTS, draw_glyphs, glyph_attributes

SIZE, DIGITS = 16, "0123456789"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WEIGHTS = {"thin": 0, "thick": 5}
"""Pixels by which strokes are thickened, of a digit 72 pixels high."""
LEANS = {"left": -1, "right": 1}
UPRIGHT = (
    "DejaVuSans",
    "DejaVuSansMono",
    "DejaVuSerif",
    "STIXGeneral",
    "cmr10",
    "cmss10",
    "cmtt10",
)
ROWS = list(itertools.product(range(10), WEIGHTS, LEANS))
CAPTIONS = [f"a {weight} {NAMES[digit]} leaning {lean}" for digit, weight, lean in ROWS]
NUM_TOKENS, WIDTH, BATCH = 8, 64, 96
M = TypeVar("M", bound=torch.nn.Module)
DROPPED = 0.1
"""Share of pictures that are learned without their caption."""


def pictures(num: int, *, stream: int) -> tuple[Tensor, Tensor]:
    """Draw pictures, uint8 (num, 1, 16, 16), with the numbers of their captions (num,)."""
    drawn = glyph_attributes(num, characters=DIGITS, stream=stream)
    random = np.random.default_rng(stream)
    weight, lean = random.integers(2, size=(2, num))
    drawn = replace(
        drawn,
        font=np.array([FONTS.index(name) for name in UPRIGHT])[drawn.font % len(UPRIGHT)],
        thickness=np.array(list(WEIGHTS.values()))[weight],
        slant=np.array(list(LEANS.values()))[lean] * random.uniform(8, 20, num),
        rotation=drawn.rotation / 3,
    )
    images = draw_glyphs(drawn, characters=DIGITS, size=SIZE, channels=1)
    return torch.from_numpy(images), torch.from_numpy(drawn.character * 4 + weight * 2 + lean)


def tokenizer_of(folder: Path) -> CLIPTokenizer:
    """Make a tokenizer of the captions' words, by byte pairs as CLIP's."""
    pairs = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    pairs.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<|startoftext|>", "<|endoftext|>"]
    pairs.train_from_iterator(
        CAPTIONS,
        trainers.BpeTrainer(
            special_tokens=special, end_of_word_suffix="</w>", show_progress=False, min_frequency=1
        ),
    )
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = pairs.model.save(str(folder))
    return CLIPTokenizer(vocabulary, merges, model_max_length=NUM_TOKENS)


def trained(
    parts: M, num: int, learning_rate: float, loss_of: Callable[[], Tensor], *, name: str
) -> M:
    """Train by Adam with a warm-up and a linear decay; return the average of the weights."""
    optimizer = torch.optim.Adam(parts.parameters(), lr=learning_rate)
    average = copy.deepcopy(parts)
    for step in range(num):
        rate = min((step + 1) / 100, 1 - step / num)
        optimizer.param_groups[0]["lr"] = learning_rate * rate
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        decay = min(0.995, (step + 1) / (step + 10))
        for kept, new in zip(average.parameters(), parts.parameters(), strict=True):
            kept.data.lerp_(new.data, 1 - decay)
        if step % 100 == 99:
            print(f"{name} {step + 1}/{num} loss {loss.item():.4f}", file=sys.stderr, flush=True)
    return average.eval().requires_grad_(False)


def autoencoder(images: Tensor, num: int) -> AutoencoderKL:
    """Train an autoencoder of pictures (N, 1, 16, 16), uint8; latents have standard deviation 1."""
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 32),
        latent_channels=8,
        norm_num_groups=4,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )

    def loss() -> Tensor:
        x = scaled(images[torch.randint(len(images), (BATCH,))])
        encoding = vae.encode(x).latent_dist
        error = F.mse_loss(vae.decode(encoding.sample()).sample, x)
        total: Tensor = error + 1e-4 * encoding.kl().mean() / encoding.mean[0].numel()
        return total

    vae = trained(vae, num, 3e-3, loss, name="autoencoder")
    vae.register_to_config(scaling_factor=1 / encoded(vae, images[:2000]).std().item())
    return vae


def scaled(images: Tensor) -> Tensor:
    """Pixels of 0..255 as -1..1."""
    return images.float() / 127.5 - 1


@torch.no_grad()
def encoded(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encode pictures (N, 1, 16, 16), uint8, as latents (N, 8, 4, 4), not scaled."""
    return torch.cat([vae.encode(scaled(x)).latent_dist.mode() for x in torch.split(images, 500)])


def denoiser(
    latents: Tensor, labels: Tensor, tokens: Tensor, scheduler: DDIMScheduler, num: int
) -> torch.nn.ModuleDict:
    """Train a text encoder and a U-Net together, to predict the noise of latents (N, 8, 4, 4).

    Args:
        latents: Scaled ones.
        labels: The number of each one's caption, (N,).
        tokens: Those of all captions and of the empty one behind them, (41, 8).
        scheduler: Adds the noise.
        num: Iterations.
    """
    text = CLIPTextConfig(
        vocab_size=int(tokens.max()) + 1,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=NUM_TOKENS,
        bos_token_id=0,
        eos_token_id=1,
    )
    unet = UNet2DConditionModel(
        sample_size=4,
        in_channels=8,
        out_channels=8,
        block_out_channels=(48, 80),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    parts = torch.nn.ModuleDict({"text_encoder": CLIPTextModel(text), "unet": unet})

    def loss() -> Tensor:
        index = torch.randint(len(latents), (BATCH,))
        captions = labels[index].where(torch.rand(BATCH) >= DROPPED, len(CAPTIONS))
        x, noise = latents[index], torch.randn(BATCH, *latents.shape[1:])
        times = torch.randint(scheduler.config.num_train_timesteps, (BATCH,))
        prompts = parts["text_encoder"](tokens)[0][captions]
        output = parts["unet"](scheduler.add_noise(x, noise, times), times, prompts).sample
        return F.mse_loss(output, noise)

    return trained(parts, num, 2e-3, loss, name="U-Net")


def main() -> None:
    """Train all parts and write the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num", type=int, default=40_000, help="pictures to learn from")
    parser.add_argument("--iterations", type=int, nargs=2, default=[700, 2500])
    args = parser.parse_args()
    torch.manual_seed(0)
    images, labels = pictures(args.num, stream=0)
    vae = autoencoder(images, args.iterations[0])
    latents = encoded(vae, images) * vae.config.scaling_factor
    tokenizer = tokenizer_of(args.folder / "pipeline" / "tokenizer")
    tokens = tokenizer([*CAPTIONS, ""], padding="max_length", return_tensors="pt").input_ids
    scheduler = DDIMScheduler(
        beta_end=0.02,
        steps_offset=1,
        clip_sample=False,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )
    parts = denoiser(latents, labels, tokens, scheduler, args.iterations[1])
    StableDiffusionPipeline(
        vae=vae,
        tokenizer=tokenizer,
        scheduler=scheduler,
        **parts,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(args.folder / "pipeline")
    names = [
        {"prompt": CAPTIONS[i], "digit": d, "weight": w, "lean": n}
        for i, (d, w, n) in enumerate(ROWS)
    ]
    pd.DataFrame(names).to_csv(args.folder / "prompts.csv", index=False)
    table = [
        {"picture": png(image[0]), "caption": CAPTIONS[label]}
        for image, label in zip(images[:10_000].numpy(), labels[:10_000], strict=True)
    ]
    pd.DataFrame(table).to_parquet(args.folder / "pictures.parquet")


def png(image: np.ndarray) -> bytes:
    """A grey picture (H, W), uint8, as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    main()
