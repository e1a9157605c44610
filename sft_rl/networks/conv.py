"""Convolutional critics and values for images."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as apply_spectral_norm

from sft_rl.errors import UserError
from sft_rl.networks.unet import image_shape

SLOPE = 0.2
COARSEST = 4
MAX_WIDENING = 4


class PaperConvCritic(nn.Module):
    """The critic of the paper's code: four 4x4 convolutions, leaky ReLU, the mean of what is left.

    The first three halve the image, the last has no padding: 32x32 pixels end in one number, 64x64
    in 5x5. Weights start as He et al. (2015) have them, N(0, 2 / fan_in); biases as torch has them.

    Args:
        shape: Shape of one image.
        width: Channels of the first convolution; twice and four times as many follow.
        spectral_norm: Normalise the layers; see :func:`_normed`.
        num_outputs: How many numbers.

    Raises:
        UserError: If images are too small for the last convolution.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int,
        spectral_norm: bool = False,
        num_outputs: int = 1,
    ) -> None:
        super().__init__()
        channels, *size = image_shape("critic.kind: paper_conv", shape)
        if min(size) < 32:
            raise UserError(
                f"critic.kind: paper_conv needs images of at least 32x32 pixels, got "
                f"{size[0]}x{size[1]}; use conv"
            )
        widths = [channels, width, 2 * width, 4 * width]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            halving = nn.Conv2d(fan_in, fan_out, kernel_size=4, stride=2, padding=1)
            layers += [halving, nn.LeakyReLU(SLOPE)]
        layers.append(nn.Conv2d(widths[-1], num_outputs, kernel_size=4))
        for layer in layers[::2]:
            nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]
            _normed(layer, spectral_norm)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Score images (B, C, H, W), shape (B, num_outputs)."""
        return self.layers(x).flatten(2).mean(2)  # type: ignore[no-any-return]


class ConvTower(nn.Module):
    """Residual blocks that halve an image until it has 4x4 pixels or less, then numbers.

    Where `num_steps` is given, every block is shifted by an embedding of the step.

    Args:
        shape: Shape of one image.
        width: Channels of the first block; they double at each halving, four times at most.
        spectral_norm: Normalise the layers; see :func:`_normed`.
        num_steps: Range of the step index, for a value network; none for a critic.
        num_outputs: How many numbers.
    """

    frequencies: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int,
        spectral_norm: bool = False,
        num_steps: int | None = None,
        num_outputs: int = 1,
    ) -> None:
        super().__init__()
        channels, height, wide = image_shape("critic.kind and value.kind: conv", shape)
        halvings = max(math.ceil(math.log2(max(height, wide) / COARSEST)), 0)
        widths = [width * min(2**i, MAX_WIDENING) for i in range(halvings + 1)]
        self.input = _normed(nn.Conv2d(channels, width, 3, padding=1), spectral_norm)
        self.blocks = nn.ModuleList(
            _Block(widths[max(i - 1, 0)], out, halve=i > 0, spectral_norm=spectral_norm)
            for i, out in enumerate(widths)
        )
        for _ in range(halvings):
            height, wide = (height + 1) // 2, (wide + 1) // 2
        self.output = _normed(nn.Linear(widths[-1] * height * wide, num_outputs), spectral_norm)
        self.embedding = None
        if num_steps is not None:
            frequencies = torch.logspace(0.0, math.log10(50.0), 16, device="cpu") / num_steps
            self.register_buffer("frequencies", frequencies, persistent=False)
            self.embedding = nn.Sequential(
                nn.Linear(32, width), nn.SiLU(), nn.Linear(width, sum(widths))
            )
        self.widths = widths

    def forward(self, x: Tensor, step_index: Tensor | None = None) -> Tensor:
        """Map images (..., C, H, W), at steps broadcastable to (...), to (..., num_outputs)."""
        lead = x.shape[:-3]
        h = self.input(x.reshape(-1, *x.shape[-3:]))
        shifts: list[Tensor | None] = [None] * len(self.widths)
        if self.embedding is not None:
            assert step_index is not None, "a value network needs the step"
            angles = step_index[..., None] * self.frequencies
            embedded = self.embedding(torch.cat([angles.sin(), angles.cos()], dim=-1))
            embedded = embedded.expand(*lead, -1).reshape(len(h), -1, 1, 1)
            shifts = list(embedded.split(self.widths, dim=1))
        for block, shift in zip(self.blocks, shifts, strict=True):
            h = block(h, shift)
        score = self.output(F.leaky_relu(h, SLOPE).flatten(1))
        return score.reshape(*lead, score.shape[-1])  # type: ignore[no-any-return]


class _Block(nn.Module):
    """leaky ReLU, convolution, twice, beside a linear path; then the mean of 2x2 pixels."""

    def __init__(self, fan_in: int, fan_out: int, *, halve: bool, spectral_norm: bool) -> None:
        super().__init__()
        self.halve = halve
        self.first = _normed(nn.Conv2d(fan_in, fan_out, 3, padding=1), spectral_norm)
        self.second = _normed(nn.Conv2d(fan_out, fan_out, 3, padding=1), spectral_norm)
        self.skip = (
            nn.Identity()
            if fan_in == fan_out
            else _normed(nn.Conv2d(fan_in, fan_out, 1, bias=False), spectral_norm)
        )

    def forward(self, x: Tensor, shift: Tensor | None) -> Tensor:
        if self.halve:
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        h = self.first(F.leaky_relu(x, SLOPE))
        if shift is not None:
            h = h + shift
        h = self.second(F.leaky_relu(h, SLOPE))
        return (self.skip(x) + h) / math.sqrt(2.0)  # type: ignore[no-any-return]


def _normed(layer: nn.Module, spectral_norm: bool) -> nn.Module:
    """Divide a layer's weights by their largest singular value, if asked for.

    Torch takes the kernel of a convolution as a matrix, (channels out, channels in x k x k), as
    Miyato et al. (2018) do. Its norm is that of the map from one patch to its pixel. Patches
    overlap, so the convolution itself stretches an image by up to ceil(k / stride) as much: 3 for
    3x3 at stride 1, 2 for 4x4 at stride 2. The critic is then Lipschitz, with no constant of 1.
    """
    return apply_spectral_norm(layer) if spectral_norm else layer
