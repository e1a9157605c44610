"""Multilayer perceptrons for points."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as apply_spectral_norm

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "softplus": nn.Softplus,
}


class FourierFeatures(nn.Module):
    """x, sin(w x) and cos(w x) of every coordinate, w from 1 to `highest` (Tancik et al., 2020).

    Fine structure is hard to learn from coordinates alone.

    Args:
        num: Number of frequencies; 0 returns x as it is.
        highest: Largest w, in radians per standard deviation of the data.
    """

    frequencies: Tensor

    def __init__(self, num: int, highest: float) -> None:
        super().__init__()
        frequencies = torch.logspace(0.0, math.log10(highest), num) if num else torch.empty(0)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., dim) to (..., dim * (1 + 2 num))."""
        if not len(self.frequencies):
            return x
        angles = (x[..., None] * self.frequencies).flatten(-2)
        return torch.cat([x, angles.sin(), angles.cos()], dim=-1)


class TimeMLP(nn.Module):
    """An MLP whose hidden layers are shifted by an embedding of continuous time.

    Args:
        in_dim: Dimensions of x.
        out_dim: Dimensions of the output.
        width: Units of a hidden layer.
        depth: Number of hidden layers.
        embedding_dim: Number of sinusoidal features of the time.
        num_fourier: Number of Fourier frequencies of x.
        time_range: Largest time expected.
        activation: Name of the hidden layers' activation.
    """

    frequencies: Tensor

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        width: int,
        depth: int,
        embedding_dim: int,
        num_fourier: int = 0,
        time_range: float = 1000.0,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        # On the CPU even for a network without memory: there a division imports half of torch.
        frequencies = (
            torch.logspace(0.0, math.log10(50.0), embedding_dim // 2, device="cpu") / time_range
        )
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.depth = depth
        self.embedding = nn.Sequential(
            nn.Linear(embedding_dim, width), nn.SiLU(), nn.Linear(width, width * depth)
        )
        self.features = FourierFeatures(num_fourier, highest=8.0)
        self.input = nn.Linear(in_dim * (1 + 2 * num_fourier), width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.output = nn.Linear(width, out_dim)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Map x (..., in_dim) at times t, broadcastable to (...), to (..., out_dim)."""
        angles = t[..., None] * self.frequencies
        embedded = self.embedding(torch.cat([angles.sin(), angles.cos()], dim=-1))
        first, *others = embedded.chunk(self.depth, dim=-1)
        h = self.activation(self.input(self.features(x)) + first)
        for layer, shift in zip(self.hidden, others, strict=True):
            h = self.activation(layer(h) + shift)
        return self.output(h)  # type: ignore[no-any-return]


class StepScaledMLP(nn.Module):
    """The paper's toy network: each hidden layer is multiplied by a learned scale per step.

    Times are whole steps ``0..num_steps - 1``.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        widths: Sequence[int],
        num_steps: int,
        activation: str,
    ) -> None:
        super().__init__()
        sizes = [in_dim, *widths]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.scales = nn.ModuleList(nn.Embedding(num_steps, width) for width in widths)
        for scale in self.scales:
            nn.init.uniform_(scale.weight)  # type: ignore[arg-type]
        self.output = nn.Linear(sizes[-1], out_dim)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Map x (..., in_dim) at whole steps t, broadcastable to (...), to (..., out_dim)."""
        step = t.long()
        for layer, scale in zip(self.layers, self.scales, strict=True):
            x = self.activation(scale(step) * layer(x))
        return self.output(x)  # type: ignore[no-any-return]


class PlainMLP(nn.Sequential):
    """An MLP without time, optionally with spectral normalisation of every layer."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        width: int,
        depth: int,
        activation: str,
        num_fourier: int = 0,
        spectral_norm: bool = False,
    ) -> None:
        layers: list[nn.Module] = [FourierFeatures(num_fourier, highest=2.0**num_fourier / 2.0)]
        sizes = [in_dim * (1 + 2 * num_fourier), *[width] * depth, out_dim]
        for fan_in, fan_out in pairwise(sizes):
            linear = nn.Linear(fan_in, fan_out)
            layers.append(apply_spectral_norm(linear) if spectral_norm else linear)
            layers.append(ACTIVATIONS[activation]())
        super().__init__(*layers[:-1])


def num_parameters(module: nn.Module) -> int:
    """Count the parameters of a module."""
    return sum(math.prod(p.shape) for p in module.parameters())
