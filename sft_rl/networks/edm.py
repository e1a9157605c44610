"""The networks of Karras et al. (2022), by the names that NVlabs' code has for their weights.

One class draws up all three: DDPM++ and NCSN++ (Song et al., 2021) and ADM (Dhariwal and Nichol,
2021) are residual U-Nets that differ in how blocks are shifted and scaled, in how images are
halved, and in what stands beside the way down and up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sft_rl.errors import UserError
from sft_rl.networks.unet import image_shape

TAPS = {2: (1.0, 1.0), 4: (1.0, 3.0, 3.0, 1.0)}
"""Filters by which images are halved and doubled, by their length."""


@dataclass(frozen=True)
class Architecture:
    """What an EDM network consists of, as :mod:`sft_rl.pretrained.edm` reads it off its weights.

    Attributes:
        resolution: Height and width of images.
        channels: Of images.
        stem: Channels of the first convolution.
        widths: Channels at each level, from the full size down.
        num_blocks: Residual blocks at each level.
        attention: Resolutions with self-attention.
        num_noise: Features of the noise level.
        num_embedding: Width of what blocks are told of level and class.
        num_labels: Classes; 0 for none.
        is_adm: ADM, whose blocks are scaled, too, and attend with 64 channels a head.
        is_fourier: Random features of the level (NCSN++), else sinusoidal ones.
        encoder: What stands beside the way down: ``standard``, ``skip`` or ``residual``.
        decoder: The same of the way up: ``standard`` or ``skip``.
        num_taps: Length of the filter by which images are halved and doubled.
        preconditioning: ``edm``, ``vp``, ``ve`` or ``iddpm``: how the network is called; the last
            gives a variance behind its prediction.
    """

    resolution: int
    channels: int
    stem: int
    widths: tuple[int, ...]
    num_blocks: int
    attention: tuple[int, ...]
    num_noise: int
    num_embedding: int
    num_labels: int
    is_adm: bool
    is_fourier: bool
    encoder: str
    decoder: str
    num_taps: int
    preconditioning: str

    @property
    def eps(self) -> float:
        """Of the group normalisation."""
        return 1e-5 if self.is_adm else 1e-6

    @property
    def skip_scale(self) -> float:
        """What the sum of a block and its input is multiplied by."""
        return 1.0 if self.is_adm else math.sqrt(0.5)


class Resampled(nn.Module):
    """Doubles or halves images, and convolves them unless `kernel` is 0."""

    resample_filter: Tensor
    bias: Tensor

    def __init__(
        self, fan_in: int, fan_out: int, kernel: int, *, up: bool, taps: int, last: bool = False
    ) -> None:
        super().__init__()
        self.up, self.pad, self.last = up, (taps - 1) // 2, last
        if kernel:
            self.weight, self.bias = nn.Conv2d(fan_in, fan_out, kernel).parameters()
        line = torch.tensor(TAPS[taps])
        self.register_buffer("resample_filter", (line.outer(line) / line.sum() ** 2)[None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W); convolve before they are halved if it comes `last`."""
        if not hasattr(self, "weight"):
            return self._sized(x, self.pad)
        half = self.weight.shape[-1] // 2
        if self.last:
            x = F.conv2d(x, self.weight, padding=half + self.pad)
            return self._sized(x, 0) + self.bias[:, None, None]
        return F.conv2d(self._sized(x, self.pad), self.weight, self.bias, padding=half)

    def _sized(self, x: Tensor, pad: int) -> Tensor:
        num, taps = x.shape[1], self.resample_filter.expand(x.shape[1], -1, -1, -1)
        if self.up:
            return F.conv_transpose2d(x, 4.0 * taps, groups=num, stride=2, padding=pad)
        return F.conv2d(x, taps, groups=num, stride=2, padding=pad)


class Block(nn.Module):
    """Two convolutions beside a linear path, told of level and class; then attention, if any."""

    def __init__(
        self,
        net: Architecture,
        fan_in: int,
        fan_out: int,
        *,
        resampled: str | None = None,
        attends: bool = False,
    ) -> None:
        super().__init__()
        self.fan_in, self.net = fan_in, net

        def convolution(fan_in: int, kernel: int) -> nn.Module:
            if resampled is None:
                return nn.Conv2d(fan_in, fan_out, kernel, padding=kernel // 2)
            return Resampled(fan_in, fan_out, kernel, up=resampled == "up", taps=net.num_taps)

        self.norm0 = _norm(fan_in, net.eps)
        self.conv0 = convolution(fan_in, 3)
        self.affine = nn.Linear(net.num_embedding, fan_out * (2 if net.is_adm else 1))
        self.norm1 = _norm(fan_out, net.eps)
        self.conv1 = nn.Conv2d(fan_out, fan_out, 3, padding=1)
        self.skip: nn.Module | None = None
        if fan_in != fan_out or resampled is not None:
            plain = net.is_adm and fan_in == fan_out
            self.skip = convolution(fan_in, 0 if plain else 1)
        self.num_heads = 0
        if attends:
            self.num_heads = fan_out // 64 if net.is_adm else 1
            self.norm2 = _norm(fan_out, net.eps)
            self.qkv = nn.Conv2d(fan_out, 3 * fan_out, 1)
            self.proj = nn.Conv2d(fan_out, fan_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map (B, C, H, W) and (B, num_embedding)."""
        told = self.affine(embedding)[..., None, None]
        h = self.conv0(F.silu(self.norm0(x)))
        if self.net.is_adm:
            scale, shift = told.chunk(2, dim=1)
            h = F.silu(shift + self.norm1(h) * (1.0 + scale))
        else:
            h = F.silu(self.norm1(h + told))
        x = self.conv1(h) + (x if self.skip is None else self.skip(x))
        x = x * self.net.skip_scale
        if not self.num_heads:
            return x
        size = (x.shape[0], self.num_heads, x.shape[1] // self.num_heads, 3, -1)
        q, k, v = self.qkv(self.norm2(x)).reshape(size).transpose(2, 4).unbind(3)
        h = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
        return (self.proj(h) + x) * self.net.skip_scale  # type: ignore[no-any-return]


class EDMUNet(nn.Module):
    """The U-Net itself; see :class:`Architecture`."""

    def __init__(self, net: Architecture) -> None:
        super().__init__()
        self.net = net
        self.map_noise = nn.Module()
        if net.is_fourier:
            self.map_noise.register_buffer("freqs", 16.0 * torch.randn(net.num_noise // 2))
        self.map_layer0 = nn.Linear(net.num_noise, net.num_embedding)
        self.map_layer1 = nn.Linear(net.num_embedding, net.num_embedding)
        if net.num_labels:
            width = net.num_embedding if net.is_adm else net.num_noise
            self.map_label = nn.Linear(net.num_labels, width, bias=not net.is_adm)
        self.enc, skips, width = self._encoder()
        self.dec = self._decoder(skips, width)

    def _encoder(self) -> tuple[nn.ModuleDict, list[int], int]:
        net, layers, skips = self.net, nn.ModuleDict(), []
        width, beside = net.stem, net.channels
        for level, wide in enumerate(net.widths):
            size = f"{net.resolution >> level}x{net.resolution >> level}"
            if level == 0:
                layers[f"{size}_conv"] = nn.Conv2d(net.channels, width, 3, padding=1)
            else:
                layers[f"{size}_down"] = Block(net, width, width, resampled="down")
                halved: dict[str, Any] = {"up": False, "taps": net.num_taps}
                if net.encoder == "skip":
                    layers[f"{size}_aux_down"] = Resampled(beside, beside, 0, **halved)
                    layers[f"{size}_aux_skip"] = nn.Conv2d(beside, width, 1)
                elif net.encoder == "residual":
                    layers[f"{size}_aux_residual"] = Resampled(
                        beside, width, 3, last=True, **halved
                    )
                    beside = width
            skips.append(width)
            for i in range(net.num_blocks):
                attends = net.resolution >> level in net.attention
                layers[f"{size}_block{i}"] = Block(net, width, wide, attends=attends)
                width = wide
                skips.append(width)
        return layers, skips, width

    def _decoder(self, skips: list[int], width: int) -> nn.ModuleDict:
        net, layers = self.net, nn.ModuleDict()
        for level, wide in reversed(list(enumerate(net.widths))):
            resolution = net.resolution >> level
            size = f"{resolution}x{resolution}"
            is_coarsest = level == len(net.widths) - 1
            if is_coarsest:
                layers[f"{size}_in0"] = Block(net, width, width, attends=True)
                layers[f"{size}_in1"] = Block(net, width, width)
            else:
                layers[f"{size}_up"] = Block(net, width, width, resampled="up")
            for i in range(net.num_blocks + 1):
                attends = resolution in net.attention and (net.is_adm or i == net.num_blocks)
                fan_in = width + skips.pop()
                layers[f"{size}_block{i}"] = Block(net, fan_in, wide, attends=attends)
                width = wide
            if net.is_adm or (net.decoder == "standard" and level > 0):
                continue
            if net.decoder == "skip" and not is_coarsest:
                doubled = Resampled(net.channels, net.channels, 0, up=True, taps=net.num_taps)
                layers[f"{size}_aux_up"] = doubled
            layers[f"{size}_aux_norm"] = _norm(width, net.eps)
            layers[f"{size}_aux_conv"] = nn.Conv2d(width, net.channels, 3, padding=1)
        if net.is_adm:
            self.out_norm = _norm(width, net.eps)
            outputs = net.channels * (2 if net.preconditioning == "iddpm" else 1)
            self.out_conv = nn.Conv2d(width, outputs, 3, padding=1)
        return layers

    def forward(self, x: Tensor, noise: Tensor, classes: Tensor | None = None) -> Tensor:
        """Map images (B, C, H, W), levels as the network wants them (B,), one-hot classes (B, K).

        A row of zeros is no class.
        """
        embedding = self._embedded(noise, classes)
        return self._decoded(embedding, *self._encoded(x, embedding))

    def _encoded(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips: list[Tensor] = []
        beside = x
        for name, layer in self.enc.items():
            if name.endswith("aux_down"):
                beside = layer(beside)
            elif name.endswith("aux_skip"):
                x = skips[-1] = x + layer(beside)
            elif name.endswith("aux_residual"):
                x = skips[-1] = beside = (x + layer(beside)) * math.sqrt(0.5)
            else:
                x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
                skips.append(x)
        return x, skips

    def _decoded(self, embedding: Tensor, x: Tensor, skips: list[Tensor]) -> Tensor:
        image: Tensor | None = None
        for name, layer in self.dec.items():
            if isinstance(layer, Block):
                if x.shape[1] != layer.fan_in:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = layer(x, embedding)
            elif name.endswith("aux_up"):
                image = layer(image)
            elif name.endswith("aux_norm"):
                h = layer(x)
            else:
                image = layer(F.silu(h)) + (0.0 if image is None else image)
        if self.net.is_adm:
            image = self.out_conv(F.silu(self.out_norm(x)))
        assert image is not None, "the full size has an output"
        return image

    def _embedded(self, noise: Tensor, classes: Tensor | None) -> Tensor:
        net, half = self.net, self.net.num_noise // 2
        if net.is_fourier:
            frequencies = 2.0 * math.pi * self.map_noise.get_buffer("freqs")
        else:
            steps = torch.arange(half, device=noise.device) / (half - (0 if net.is_adm else 1))
            frequencies = 10_000.0**-steps
        angles = noise[:, None] * frequencies
        waves = [angles.cos(), angles.sin()]
        h = torch.cat(waves if net.is_adm else waves[::-1], dim=1)
        if net.is_adm:
            h = self.map_layer1(F.silu(self.map_layer0(h)))
            return F.silu(h if classes is None else h + self.map_label(classes))
        if classes is not None:
            h = h + self.map_label(classes * math.sqrt(net.num_labels))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(h))))


class EDMNetwork(nn.Module):
    """An EDM network behind our call: what it predicts at a path's own times.

    Under ``edm`` that is the inner network F, under the others the noise.

    Args:
        shape: Shape of one image.
        options: Fields of :class:`Architecture`.

    Raises:
        UserError: If the images are of another size.
    """

    INNER = "unet"

    def __init__(self, shape: tuple[int, ...], options: dict[str, Any]) -> None:
        super().__init__()
        net = Architecture(**options)
        wanted = (net.channels, net.resolution, net.resolution)
        if image_shape("model.kind: edm", shape) != wanted:
            given, own = ("x".join(map(str, size)) for size in (shape, wanted))
            raise UserError(
                f"pretrained.path: the network is for images {own}, the data's are {given}"
            )
        self.unet = EDMUNet(net)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map latents x (..., C, H, W) at times t and labels, both broadcastable to (...).

        The label behind the last class is none.
        """
        lead, net = x.shape[:-3], self.unet.net
        noise = t.to(x.dtype).expand(lead).reshape(-1)
        if net.preconditioning == "ve":
            noise = (0.5 * noise).log()
        classes = None
        if labels is not None:
            rows = labels.expand(lead).reshape(-1)
            classes = F.one_hot(rows, net.num_labels + 1)[:, :-1].to(x.dtype)
        output = self.unet(x.reshape(-1, *x.shape[-3:]), noise, classes)[:, : net.channels]
        output = output.reshape(x.shape)
        return -output if net.preconditioning == "ve" else output  # type: ignore[no-any-return]


def _norm(channels: int, eps: float) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)
