"""The U-Net of a text-to-image pipeline behind our call, for latents and numbers of prompts."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from sft_rl.errors import UserError, first_line
from sft_rl.networks.unet import UNet, image_shape

UNSUPPORTED = ("addition_embed_type", "class_embed_type", "encoder_hid_dim", "time_cond_proj_dim")
"""Arguments that bring inputs which are neither latents, time nor a prompt."""


class TextUNet(UNet):
    """A ``diffusers.UNet2DConditionModel``, which attends to a prompt's embedding.

    It keeps the embeddings of all prompts as ``prompts``, (K + 1, tokens, width), and takes their
    numbers as labels; the last is the empty prompt, for guidance.

    Args:
        shape: Shape of a latent, (channels, height, width).
        options: Arguments of UNet2DConditionModel.
        table: Shape of the embeddings.
        channels_last: Keep latents channel by channel in memory.
        bfloat16: Compute in bfloat16 where torch's autocast deems it safe.

    Raises:
        UserError: If the options do not make such a U-Net, or one of other inputs.
    """

    prompts: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        options: dict[str, Any],
        *,
        table: tuple[int, ...],
        channels_last: bool = False,
        bfloat16: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        channels, _, _ = image_shape("model.kind: text_unet", shape)
        for name in UNSUPPORTED:
            if options.get(name) is not None:
                raise UserError(
                    f"model.unet: {name} is {options[name]!r}; supported are U-Nets of latents, "
                    "time and one text encoder, as of Stable Diffusion 1 and 2"
                )
        if options.get("in_channels") != channels:
            raise UserError(
                f"model.unet: takes {options.get('in_channels')} channels, the autoencoder's "
                f"latents have {channels}; pipelines for inpainting and editing are not supported"
            )
        if options.get("cross_attention_dim") != table[-1]:
            raise UserError(
                f"model.unet: attends to {options.get('cross_attention_dim')} numbers a token, the "
                f"text encoder gives {table[-1]}"
            )
        try:
            self.unet = UNet2DConditionModel(**options)
        except (TypeError, ValueError) as error:
            raise UserError(f"model.unet: {first_line(error)}") from error
        self.register_buffer("prompts", torch.zeros(table))
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.unet.to(memory_format=self.memory_format)
        self.in_bfloat16 = bfloat16

    def called(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Predict for a plain batch, with the embeddings of its prompts."""
        assert labels is not None, "which prompt?"
        output = self.unet(x, t, encoder_hidden_states=self.prompts[labels])
        return output.sample  # type: ignore[no-any-return]
