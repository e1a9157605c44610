"""Settings of a full-step model that is there already, and of training one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sft_rl.config.base import Count, NonNegativeInt, Positive, Probability, Section, Seed


class PretrainedConfig(Section):
    """A full-step model that is there already, in place of training one."""

    path: str | None = None
    """A UNet2DModel, unconditional or conditional on classes: a folder of diffusers, a name on the
    Hugging Face hub, or the file of an original PyTorch DDPM; or the folder of a pipeline of
    latents: Stable Diffusion, PixArt or DiT. It sets `model`, and a folder's scheduler
    `noise`, too."""
    variant: str | None = None
    """Which weights, where there are several: `ema` is `diffusion_pytorch_model.ema.safetensors`;
    in an original file that holds several, `ema` takes the averaged ones."""
    preconditioning: Literal["edm", "vp", "ve", "iddpm"] | None = None
    """Which of NVlabs' EDMPrecond, VPPrecond and VEPrecond stands around an EDM network, where its
    file does not say so."""
    lora: str | None = None
    """Somebody's low-rank adapter of the denoiser of a pipeline of Stable Diffusion, which is
    merged into the weights before all else: a .safetensors file, or a folder with
    pytorch_lora_weights.safetensors."""
    vae_tiling: bool = False
    """Let the autoencoder of a pipeline of latents work on overlapping tiles of a picture, which
    are blended: less memory for large ones."""
    sha256: str | None = None
    """Hash of the files of the weights; filled in, or given to refuse any others."""

    @model_validator(mode="after")
    def _goes_with_a_path(self) -> PretrainedConfig:
        if self.lora is not None and self.path is None:
            raise ValueError(f"pretrained.lora: goes with pretrained.path, got {self.lora} alone")
        if self.preconditioning is not None and self.path is None:
            raise ValueError(
                "pretrained.preconditioning: goes with the file of an EDM network in "
                f"pretrained.path, got none beside {self.preconditioning!r}"
            )
        return self


class PretrainingConfig(Section):
    """Training of the full-step model, done once and cached."""

    num_iterations: Count = 2000
    """Optimiser steps."""
    batch_size: Annotated[int, Field(ge=2, le=10**9)] = 2048
    """Points a step."""
    num_times: Count = 128
    """Different timesteps a step; each is shared by batch_size / num_times points."""
    warmup: NonNegativeInt = 100
    """Steps over which the learning rate rises."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Optimiser."""
    learning_rate: Positive = 2e-3
    """Peak learning rate."""
    lr_decay: Literal["none", "linear", "cosine"] = "cosine"
    """How the learning rate falls to zero."""
    max_grad_norm: Positive = 1.0
    """Gradient clip."""
    ema_decay: Probability = 0.999
    """Decay of the averaged weights, which are kept; 0 keeps the last weights."""
    continuous_time: bool = True
    """Train on fractional timesteps."""
    label_dropout: Probability = 0.0
    """Share of samples that are trained on without their class; needs `model.null_class`."""
    guidance_iterations: Count = 1000
    """Optimiser steps that make one network call of the two of `sampler.guidance_scale`."""
    seed: Seed = 0
    """Seed; separate from the run's, so that runs share a cached model."""
