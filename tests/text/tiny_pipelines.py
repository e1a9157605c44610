"""Tiny pipelines of latents with random weights, in the real format."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

WORDS = ["a", "thin", "thick", "seven", "two", "leaning", "left", "right"]
PROMPTS = ("a thin seven leaning right", "a thick two", "seven")
NUM_TOKENS = 8
TEXT = {
    "vocab_size": 200,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": NUM_TOKENS,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """A tokenizer of whole letters and a few words, as CLIP's files have it."""
    letters = [chr(i) for i in range(97, 123)]
    merges, vocabulary = [], ["<|startoftext|>", "<|endoftext|>"]
    vocabulary += [*letters, *(f"{letter}</w>" for letter in letters)]
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            pair = f"{parts[0]} {parts[1]}"
            if pair not in merges:
                merges.append(pair)
                vocabulary.append(parts[0] + parts[1])
            parts = [parts[0] + parts[1], *parts[2:]]
    folder.mkdir(parents=True)
    numbers = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    (folder / "vocab.json").write_text(json.dumps(numbers))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=NUM_TOKENS
    )


def tiny_autoencoder(**options: Any) -> AutoencoderKL:
    """Of 16x16 pixels and 8x8 latents."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
        **options,
    )


def write_pipeline(folder: Path, scratch: Path, *, unet: dict[str, Any] | None = None) -> None:
    """Write a StableDiffusionPipeline of 16x16 pixels, 8x8 latents."""
    torch.manual_seed(0)
    text = CLIPTextConfig(**TEXT)
    options = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        **(unet or {}),
    }
    StableDiffusionPipeline(
        vae=tiny_autoencoder(),
        text_encoder=CLIPTextModel(text),
        tokenizer=write_tokenizer(scratch),
        unet=UNet2DConditionModel(**options),
        scheduler=DDPMScheduler(
            20, beta_end=0.3, clip_sample=False, steps_offset=1, timestep_spacing="trailing"
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def write_sd3(folder: Path) -> None:
    """Write a StableDiffusion3Pipeline of 16x16 pixels, 8x8 latents, with all text encoders."""
    torch.manual_seed(0)
    clips = [CLIPTextConfig(**TEXT, projection_dim=dim) for dim in (12, 10)]
    t5, tokenizer = tiny_t5()
    scratch = folder.with_name("of sd3")
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=22,
        pos_embed_max_size=8,
    )
    for block in transformer.transformer_blocks:
        torch.nn.init.normal_(block.norm1.linear.weight, std=0.3)  # so that prompts matter
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(20, shift=3.0),
        vae=tiny_autoencoder(shift_factor=0.2, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(clips[0]),
        tokenizer=write_tokenizer(scratch / "1"),
        text_encoder_2=CLIPTextModelWithProjection(clips[1]),
        tokenizer_2=write_tokenizer(scratch / "2"),
        text_encoder_3=t5,
        tokenizer_3=tokenizer,
    ).save_pretrained(folder)


def write_pixart(folder: Path) -> None:
    """Write a PixArtAlphaPipeline of 16x16 pixels, 8x8 latents, which sees sizes of pictures."""
    _write_pixart(folder, PixArtAlphaPipeline, sample_size=128)


def write_sigma(folder: Path) -> None:
    """Write a PixArtSigmaPipeline of 16x16 pixels, 8x8 latents."""
    _write_pixart(folder, PixArtSigmaPipeline, sample_size=8)


def _write_pixart(folder: Path, kind: Any, *, sample_size: int) -> None:
    torch.manual_seed(0)
    t5, tokenizer = tiny_t5()
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,  # the second half is a variance
        num_layers=2,
        norm_num_groups=4,
        cross_attention_dim=24,
        sample_size=sample_size,
        caption_channels=32,
    )
    for block in transformer.transformer_blocks:
        torch.nn.init.normal_(block.attn2.to_v.weight)  # so that prompts matter
    kind(
        tokenizer=tokenizer,
        text_encoder=t5,
        vae=tiny_autoencoder(),
        transformer=transformer,
        scheduler=DDPMScheduler(20, beta_end=0.3, clip_sample=False),
    ).save_pretrained(folder)


def write_sdxl(folder: Path) -> None:
    """Write a StableDiffusionXLPipeline of 16x16 pixels, 8x8 latents."""
    torch.manual_seed(0)
    text = CLIPTextConfig(**TEXT, projection_dim=12)
    scratch = folder.with_name("of sdxl")
    StableDiffusionXLPipeline(
        vae=tiny_autoencoder(),
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=write_tokenizer(scratch / "1"),
        tokenizer_2=write_tokenizer(scratch / "2"),
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 8),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=4,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=12 + 6 * 8,
        ),
        scheduler=DDPMScheduler(20, beta_end=0.3, clip_sample=False),
    ).save_pretrained(folder)


def tiny_t5() -> tuple[T5EncoderModel, T5Tokenizer]:
    """Of letters, 32 numbers each."""
    config = T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    letters = [("\u2581", -2.0), *((chr(i), -3.0) for i in range(97, 123))]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0)]
    return T5EncoderModel(config), T5Tokenizer([*special, *letters], extra_ids=0)


def write_clip(folder: Path) -> None:
    """Write a CLIP of 30x30 pixels with random weights, as published ones are written."""
    torch.manual_seed(0)
    own = {key: TEXT[key] for key in list(TEXT)[1:5]}
    vision = {**own, "image_size": 30, "patch_size": 10}
    config = CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    write_tokenizer(folder / "scratch").save_pretrained(folder)
    size = {"size": {"shortest_edge": 30}, "crop_size": {"height": 30, "width": 30}}
    CLIPImageProcessor(**size).save_pretrained(folder)
