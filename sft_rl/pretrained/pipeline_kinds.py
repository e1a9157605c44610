"""What pipelines of latents are read: of each kind its parts, its prompts and its denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CLIP = {"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}
TWO_CLIPS = {
    "text_encoder": "CLIPTextModelWithProjection",
    "tokenizer": "CLIPTokenizer",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "tokenizer_2": "CLIPTokenizer",
}


@dataclass(frozen=True)
class PipelineKind:
    """One kind of pipelines of diffusers.

    Attributes:
        parts: Parts that there must be, with their classes; of a scheduler any that is read.
        optional: Parts that may be left out.
        embeddings: What its ``encode_prompt`` makes of prompts, by the names under which the
            denoiser keeps it, with the place among what is returned.
        arguments: Further arguments of ``encode_prompt``.
        call: How a user calls it: guidance is in the weights.
        lora: The class of diffusers that writes and reads its adapters; without one peft does.
        asks_scale: Whether it asks the scheduler to scale what the denoiser sees.
    """

    parts: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)
    embeddings: Mapping[str, int] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    call: str = 'pipeline("PROMPT", guidance_scale=1)'
    lora: str | None = None
    asks_scale: bool = True

    @property
    def denoiser(self) -> str:
        """The part that denoises."""
        return "unet" if "unet" in self.parts else "transformer"

    @property
    def of_text(self) -> dict[str, str]:
        """Tokenizers and text encoders, with those that may be left out."""
        every = {**self.parts, **self.optional}
        return {k: v for k, v in every.items() if k.startswith(("tokenizer", "text_encoder"))}


def _pixart(num_tokens: int) -> PipelineKind:
    return PipelineKind(
        parts={
            "text_encoder": "T5EncoderModel",
            "tokenizer": "T5Tokenizer",
            "transformer": "PixArtTransformer2DModel",
            "vae": "AutoencoderKL",
            "scheduler": "",
        },
        embeddings={"prompts": 0, "mask": 1},
        arguments={"max_sequence_length": num_tokens},
    )


KINDS = {
    "StableDiffusionPipeline": PipelineKind(
        parts={**CLIP, "unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": ""},
        embeddings={"prompts": 0},
        arguments={"num_images_per_prompt": 1},
        lora="StableDiffusionLoraLoaderMixin",
    ),
    "StableDiffusionXLPipeline": PipelineKind(
        parts={
            **TWO_CLIPS,
            "text_encoder": "CLIPTextModel",
            "unet": "UNet2DConditionModel",
            "vae": "AutoencoderKL",
            "scheduler": "",
        },
        embeddings={"prompts": 0, "pooled": 2},
        arguments={"num_images_per_prompt": 1},
        lora="StableDiffusionXLLoraLoaderMixin",
    ),
    "StableDiffusion3Pipeline": PipelineKind(
        parts={
            **TWO_CLIPS,
            "transformer": "SD3Transformer2DModel",
            "vae": "AutoencoderKL",
            "scheduler": "",
        },
        optional={"text_encoder_3": "T5EncoderModel", "tokenizer_3": "T5Tokenizer"},
        embeddings={"prompts": 0, "pooled": 2},
        arguments={"prompt_2": None, "prompt_3": None, "max_sequence_length": 256},
        lora="SD3LoraLoaderMixin",
        asks_scale=False,
    ),
    "PixArtAlphaPipeline": _pixart(num_tokens=120),
    "PixArtSigmaPipeline": _pixart(num_tokens=300),
    "DiTPipeline": PipelineKind(
        parts={"transformer": "DiTTransformer2DModel", "vae": "AutoencoderKL", "scheduler": ""},
        call="pipeline(class_labels=[0, 1], guidance_scale=1)",
    ),
}
