"""Multilayer perceptrons for points."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

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
        frequencies = torch.logspace(0.0, math.log10(highest), num, device="cpu")
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


class StepScaledLinear(nn.Module):
    """A linear layer whose outputs, bias included, are multiplied by a learned scale per step.

    Weights start as Glorot and Bengio (2010) have them, normal; scales are uniform in 0..1.
    """

    def __init__(self, fan_in: int, fan_out: int, *, num_steps: int) -> None:
        super().__init__()
        self.linear = nn.Linear(fan_in, fan_out)
        self.scale = nn.Embedding(num_steps, fan_out)
        nn.init.xavier_normal_(self.linear.weight)
        nn.init.uniform_(self.scale.weight)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        """Map x (..., fan_in) at steps, int64, broadcastable to (...), to (..., fan_out)."""
        return self.scale(step) * self.linear(x)  # type: ignore[no-any-return]


class StepScaledMLP(nn.Module):
    """The MLP of the paper's code: each hidden layer is multiplied by a learned scale per step.

    Times are whole steps ``0..num_steps - 1``.

    Args:
        in_dim: Dimensions of x.
        out_dim: Dimensions of the output.
        widths: Units of each hidden layer.
        num_steps: Number of steps.
        activation: Name of the hidden layers' activation.
        output: The last layer, in which the code's three networks differ: ``plain`` starts as torch
            has it (noise prediction), ``xavier`` as the hidden layers (value of images), and
            ``scaled`` is scaled per step, too (value of points).
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        widths: Sequence[int],
        num_steps: int,
        activation: str,
        output: Literal["plain", "xavier", "scaled"] = "plain",
    ) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(
            StepScaledLinear(a, b, num_steps=num_steps) for a, b in pairwise([in_dim, *widths])
        )
        self.output: nn.Module
        if output == "scaled":
            self.output = StepScaledLinear(widths[-1], out_dim, num_steps=num_steps)
        else:
            self.output = last = nn.Linear(widths[-1], out_dim)
            if output == "xavier":
                nn.init.xavier_normal_(last.weight)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Map x (..., in_dim) at whole steps t, broadcastable to (...), to (..., out_dim)."""
        step = t.long()
        for layer in self.hidden:
            x = self.activation(layer(x, step))
        if isinstance(self.output, StepScaledLinear):
            return self.output(x, step)  # type: ignore[no-any-return]
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
