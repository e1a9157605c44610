"""Denoisers of text-to-image pipelines behind our call, for latents and numbers of prompts."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import (
    ModelMixin,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from sft_rl.errors import UserError, first_line
from sft_rl.networks.unet import UNet, image_shape

Shape = tuple[int, ...]
SIZE = "size"
"""What is kept of the pictures, beside what a pipeline makes of prompts."""


class Prompted(UNet):
    """A denoiser of diffusers that attends to a prompt's embedding.

    It keeps the embeddings of all prompts as ``prompts``, (K + 1, tokens, width), and whatever
    else the pipeline makes of prompts by its name, and takes their numbers as labels; the last is
    the empty prompt, for guidance.

    Args:
        shape: Shape of a latent, (channels, height, width).
        options: Arguments of the network of diffusers.
        table: Shape of the embeddings.
        channels_last: Keep latents channel by channel in memory.
        bfloat16: Compute in bfloat16 where torch's autocast deems it safe.

    Raises:
        UserError: If the options do not make such a network, or one of other inputs.
    """

    NETWORK: ClassVar[type[ModelMixin]]
    prompts: Tensor

    def __init__(
        self,
        shape: Shape,
        options: dict[str, Any],
        *,
        table: Shape,
        channels_last: bool = False,
        bfloat16: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        channels, height, width = image_shape("model.kind: a text-to-image network", shape)
        if options.get("in_channels") != channels:
            raise UserError(
                f"model.unet: takes {options.get('in_channels')} channels, the autoencoder's "
                f"latents have {channels}; pipelines for inpainting and editing are not supported"
            )
        self.check(options, height, width)
        try:
            self.unet = self.NETWORK(**options)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UserError(f"model.unet: {first_line(error)}") from error
        kept = self.kept(options, table)
        for name, size in kept.items():
            self.register_buffer(name, torch.zeros(size))
        self.of_prompts = tuple(name for name in kept if name != SIZE)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.unet.to(memory_format=self.memory_format)
        self.in_bfloat16 = bfloat16

    @staticmethod
    def check(options: dict[str, Any], height: int, width: int) -> None:
        """Refuse options of inputs that there are not, or of latents of another size."""

    @staticmethod
    def kept(options: dict[str, Any], table: Shape) -> dict[str, Shape]:
        """Shapes of what is kept of prompts, whose tokens are of shape `table`.

        Their widths are those that the network takes.
        """
        raise NotImplementedError


class TextUNet(Prompted):
    """The U-Net of Stable Diffusion 1, 2 and XL: ``diffusers.UNet2DConditionModel``.

    That of XL also takes ``pooled``, one vector a prompt, (K + 1, P), and ``size``, height and
    width of the pictures in pixels, (K + 1, 2).
    """

    NETWORK = UNet2DConditionModel
    UNSUPPORTED = ("class_embed_type", "encoder_hid_dim", "time_cond_proj_dim")
    """Arguments that bring inputs which are neither latents, time nor a prompt."""
    pooled: Tensor
    size: Tensor

    @staticmethod
    def check(options: dict[str, Any], height: int, width: int) -> None:
        """Refuse a U-Net of other inputs."""
        given = [name for name in TextUNet.UNSUPPORTED if options.get(name) is not None]
        if options.get("addition_embed_type") not in (None, "text_time"):
            given.append("addition_embed_type")
        for name in given:
            raise UserError(
                f"model.unet: {name} is {options[name]!r}; supported are U-Nets of latents, "
                "time and prompts, as of Stable Diffusion 1, 2 and XL"
            )

    @staticmethod
    def kept(options: dict[str, Any], table: Shape) -> dict[str, Shape]:
        """Shapes of tokens; of XL of pooled vectors and sizes, too."""
        kept = {"prompts": (*table[:2], options["cross_attention_dim"])}
        if options.get("addition_embed_type") != "text_time":
            return kept
        names = ("projection_class_embeddings_input_dim", "addition_time_embed_dim")
        added, of_time = (options.get(name) or 0 for name in names)
        pooled = added - 6 * of_time
        return {**kept, "pooled": (table[0], pooled), SIZE: (table[0], 2)}

    def called(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Predict for a plain batch, with the embeddings of its prompts.

        XL's pictures are said to be whole: of their own size, and cut at (0, 0).
        """
        assert labels is not None, "which prompt?"
        added = {}
        if "pooled" in self.of_prompts:
            size = self.size[labels]
            times = torch.cat([size, torch.zeros_like(size), size], dim=-1)
            added = {"text_embeds": self.pooled[labels], "time_ids": times}
        output = self.unet(
            x, t, encoder_hidden_states=self.prompts[labels], added_cond_kwargs=added
        )
        return output.sample  # type: ignore[no-any-return]


class SD3(Prompted):
    """The transformer of Stable Diffusion 3: ``diffusers.SD3Transformer2DModel``.

    Beside tokens it takes ``pooled``, one vector a prompt, (K + 1, P).
    """

    NETWORK = SD3Transformer2DModel
    pooled: Tensor

    @staticmethod
    def check(options: dict[str, Any], height: int, width: int) -> None:
        """Refuse latents that are no whole patches, or more than there are positions for."""
        patch, most = options["patch_size"], options["pos_embed_max_size"]
        if height % patch or width % patch or max(height, width) > most * patch:
            raise UserError(
                f"data.image_size: makes latents of {height}x{width}, the transformer takes "
                f"multiples of {patch} up to {most * patch}"
            )

    @staticmethod
    def kept(options: dict[str, Any], table: Shape) -> dict[str, Shape]:
        """Shapes of tokens and of pooled vectors."""
        return {
            "prompts": (*table[:2], options["joint_attention_dim"]),
            "pooled": (table[0], options["pooled_projection_dim"]),
        }

    def called(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Predict for a plain batch, with the embeddings of its prompts."""
        assert labels is not None, "which prompt?"
        output = self.unet(
            x,
            timestep=t,
            encoder_hidden_states=self.prompts[labels],
            pooled_projections=self.pooled[labels],
        )
        return output.sample  # type: ignore[no-any-return]


class PixArt(Prompted):
    """The transformer of PixArt-alpha and -Sigma: ``diffusers.PixArtTransformer2DModel``.

    Beside tokens it keeps ``mask``, which of them are a prompt's, (K + 1, tokens); alpha of 1024
    pixels also ``size``, height and width of the pictures in pixels, (K + 1, 2).
    """

    NETWORK = PixArtTransformer2DModel
    mask: Tensor
    size: Tensor

    @staticmethod
    def check(options: dict[str, Any], height: int, width: int) -> None:
        """Refuse latents that are no whole patches."""
        patch = options["patch_size"]
        if height % patch or width % patch:
            raise UserError(
                f"data.image_size: makes latents of {height}x{width}, the transformer takes "
                f"multiples of {patch}"
            )

    @staticmethod
    def kept(options: dict[str, Any], table: Shape) -> dict[str, Shape]:
        """Shapes of tokens and of their mask, and of sizes."""
        kept = {"prompts": (*table[:2], options["caption_channels"]), "mask": table[:2]}
        sized = options.get("use_additional_conditions")
        if sized is None:
            sized = options["sample_size"] == 128
        return {**kept, SIZE: (table[0], 2)} if sized else kept

    def called(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Predict for a plain batch, with the embeddings of its prompts."""
        assert labels is not None, "which prompt?"
        size = self.size[labels] if self.unet.use_additional_conditions else None
        ratio = None if size is None else size[:, :1] / size[:, 1:]
        output = self.unet(
            x,
            timestep=t,
            encoder_hidden_states=self.prompts[labels],
            encoder_attention_mask=self.mask[labels],
            added_cond_kwargs={"resolution": size, "aspect_ratio": ratio},
        )
        return output.sample  # type: ignore[no-any-return]


BY_KIND = {"text_unet": TextUNet, "sd3": SD3, "pixart": PixArt}
"""Denoisers by `model.kind`."""
