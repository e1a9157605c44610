"""The U-Net and the transformer of diffusers behind our call, for images."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import DiTTransformer2DModel, ModelMixin, UNet2DModel
from torch import Tensor, nn

from sft_rl.errors import UserError
from sft_rl.networks.precision import computing
from sft_rl.types import for_all

SIZES = ("sample_size", "in_channels", "out_channels")
"""Arguments that follow from the data."""
DDPM_UNET: dict[str, Any] = {
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
"""How the U-Net of Ho et al. (2020) differs from the defaults of diffusers."""


class UNet(nn.Module):
    """A denoising network: ``diffusers.UNet2DModel``.

    Args:
        shape: Shape of one image, (channels, height, width).
        options: Arguments of UNet2DModel; those not given are DDPM's.
        channels_last: Keep images channel by channel in memory.
        bfloat16: Compute in bfloat16 where torch's autocast deems it safe.

    Raises:
        UserError: If the options do not make a U-Net for such images.
    """

    INNER = "unet"
    FIXED: ClassVar[dict[str, Any]] = {}
    unet: ModelMixin

    def __init__(
        self,
        shape: tuple[int, ...],
        options: dict[str, Any],
        *,
        channels_last: bool = False,
        bfloat16: bool = False,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape("model.kind: unet", shape)
        sizes = _sizes(options, channels, height, width)
        try:
            _check_classes(options)
            self.unet = UNet2DModel(**{**DDPM_UNET, **options, **self.FIXED, **sizes})
        except (TypeError, ValueError) as error:
            raise UserError(f"model.unet: {str(error).splitlines()[0]}") from error
        halvings = len(self.unet.config.block_out_channels) - 1
        if height % 2**halvings or width % 2**halvings:
            raise UserError(
                f"model.unet: {halvings + 1} levels halve the images {halvings} times, which "
                f"{height}x{width} pixels do not allow; take fewer in block_out_channels, or "
                f"multiples of {2**halvings} pixels in data.image_size"
            )
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.unet.to(memory_format=self.memory_format)
        self.in_bfloat16 = bfloat16

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map latents x (..., C, H, W) at times t, broadcastable to (...), to its prediction.

        Of an output with twice the channels, the second half of which is a learned variance, it is
        the first half.

        Times are in training steps and may be fractional. Labels, of a U-Net with classes, are
        int64 and broadcastable to (...); vectors float32, to (..., D).
        """
        lead = x.shape[:-3]
        flat = x.reshape(-1, *x.shape[-3:]).contiguous(memory_format=self.memory_format)
        times = t.to(x.dtype).expand(lead).reshape(-1)
        rows = None if labels is None else for_all(labels, lead)
        classes = None if rows is None else rows.reshape(-1, *rows.shape[len(lead) :])
        with computing(x.device, bfloat16=self.in_bfloat16):
            output = self.called(flat, times, classes)
        mean = output[:, : flat.shape[1]]
        return mean.to(x.dtype).reshape(x.shape)

    def called(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Predict for a plain batch: latents (N, C, H, W), times (N,) and labels (N,)."""
        return self.unet(x, t, class_labels=labels).sample  # type: ignore[no-any-return]


class VectorUNet(UNet):
    """A U-Net that is conditional on a vector, whose embedding is added to that of the time.

    It keeps the vectors to draw from as ``conditions``, and takes vectors as labels.

    Args:
        shape: Shape of one image, (channels, height, width).
        options: Arguments of UNet2DModel.
        table: Shape (K, D) of the vectors to keep.
        channels_last: Keep images channel by channel in memory.
        bfloat16: Compute in bfloat16 where torch's autocast deems it safe.

    Raises:
        UserError: If the options do not make a U-Net for such images, or one of classes.
    """

    FIXED: ClassVar[dict[str, Any]] = {"class_embed_type": "identity"}

    def __init__(
        self,
        shape: tuple[int, ...],
        options: dict[str, Any],
        *,
        table: tuple[int, ...],
        channels_last: bool = False,
        bfloat16: bool = False,
    ) -> None:
        if options.get("num_class_embeds") is not None:
            raise UserError(
                "model.unet.num_class_embeds: beside data.condition_columns; take one of the two"
            )
        super().__init__(shape, options, channels_last=channels_last, bfloat16=bfloat16)
        width = self.unet.time_embedding.linear_2.out_features
        self.embed = nn.Sequential(nn.Linear(table[1], width), nn.SiLU(), nn.Linear(width, width))
        self.register_buffer("conditions", torch.zeros(table))

    def called(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Predict for a plain batch, with the embeddings of its vectors (N, D)."""
        return super().called(x, t, self.embed(labels))


class DiT(UNet):
    """A transformer of pixels, conditional on classes: ``diffusers.DiTTransformer2DModel``.

    The label behind the last class is none. It is called as a U-Net is.

    Args:
        shape: Shape of one image, (channels, height, width).
        options: Arguments of DiTTransformer2DModel.
        bfloat16: Compute in bfloat16 where torch's autocast deems it safe.

    Raises:
        UserError: If the options do not make a transformer for such images.
    """

    def __init__(
        self, shape: tuple[int, ...], options: dict[str, Any], *, bfloat16: bool = False
    ) -> None:
        nn.Module.__init__(self)
        channels, height, width = image_shape("model.kind: dit", shape)
        options = {name: value for name, value in options.items() if value is not None}
        patch = options.get("patch_size", 2)
        if height != width or height % patch:
            raise UserError(
                f"model.kind: dit takes square images of whole patches of {patch} pixels, got "
                f"{height}x{width}"
            )
        sizes = _sizes(options, channels, height, width)
        try:
            self.unet = DiTTransformer2DModel(**{**options, **sizes})
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UserError(f"model.unet: {str(error).splitlines()[0]}") from error
        self.memory_format, self.in_bfloat16 = torch.contiguous_format, bfloat16


def _sizes(options: dict[str, Any], channels: int, height: int, width: int) -> dict[str, Any]:
    """Return the arguments that follow from the data; refuse options that differ."""
    size = height if height == width else (height, width)
    given = options.get("sample_size") or size  # null is any size
    pair = (given, given) if isinstance(given, int) else tuple(given)
    outputs = options.get("out_channels", channels)
    found = {"sample_size": pair, "in_channels": options.get("in_channels", channels)}
    wanted = {"sample_size": (height, width), "in_channels": channels}
    if outputs != 2 * channels:  # those are a mean and a learned variance
        found, wanted = {**found, "out_channels": outputs}, {**wanted, "out_channels": channels}
    for name, value in wanted.items():
        if found[name] != value:
            raise UserError(
                f"model.unet: {name} is {options[name]}, but the data's images are "
                f"{channels}x{height}x{width}"
            )
    return dict(zip(SIZES, (size, channels, outputs), strict=True))


def _check_classes(options: dict[str, Any]) -> None:
    """Refuse what is conditional on something else than one of a known number of classes."""
    num, kind = options.get("num_class_embeds"), options.get("class_embed_type")
    if kind not in (None, "timestep"):
        raise ValueError(f"class_embed_type is {kind!r}; supported are null and 'timestep'")
    if kind is not None and num is None:
        raise ValueError(f"class_embed_type {kind!r} needs num_class_embeds, the number of classes")
    if num is not None and (not isinstance(num, int) or num < 1):
        raise ValueError(f"num_class_embeds must be a number of classes, got {num!r}")


def image_shape(field: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return channels, height and width.

    Raises:
        UserError: If samples are points.
    """
    if len(shape) != 3:
        raise UserError(f"{field} takes images, the data are points of {shape[0]} dimensions")
    return shape[0], shape[1], shape[2]
