"""Networks of a user's own: handed over in Python, or made by a function that a setting names."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from sft_rl.config.extensions import load_object, made_by, told
from sft_rl.errors import UserError
from sft_rl.types import for_all


class OwnNetwork(nn.Module):
    """A user's network, which takes plain batches: latents (N, *shape) and times (N,).

    Args:
        network: Called as ``network(latents, timesteps)``, with labels (N,) as the third argument
            if there are classes; returns its prediction, as a tensor or, like the networks of
            diffusers, as the ``sample`` of an object.
        shape: Shape of one sample.
        table: Shape (K, D) of the vectors that it is conditional on, which are then the third
            argument (N, D), and are kept as ``conditions``; None for none.
    """

    INNER = "network"

    def __init__(
        self, network: nn.Module, shape: tuple[int, ...], table: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.shape = shape
        if table is not None:
            self.register_buffer("conditions", torch.zeros(table))

    def forward(self, x: Tensor, t: Tensor, *labels: Tensor) -> Tensor:
        """Map latents x (..., *shape) at times t, broadcastable to (...), to its prediction."""
        output = self.called(x, t, *labels)
        prediction = output if isinstance(output, Tensor) else output.sample
        return prediction.reshape(x.shape)

    def called(self, x: Tensor, t: Tensor, *labels: Tensor) -> Any:
        """What the network makes of a plain batch."""
        lead = x.shape[: x.ndim - len(self.shape)]
        rows = [for_all(y, lead).flatten(0, len(lead) - 1) for y in labels]
        return self.network(x.reshape(-1, *self.shape), t.expand(lead).reshape(-1), *rows)


class OwnValue(OwnNetwork):
    """A user's V(s_k), which takes plain batches: latents (N, *shape) and step indices (N,)."""

    def forward(self, x: Tensor, t: Tensor, *labels: Tensor) -> Tensor:
        """Map latents x (..., *shape) at steps t, broadcastable to (...), to values (..., 1)."""
        values: Tensor = self.called(x, t, *labels)
        return values.reshape(*x.shape[: x.ndim - len(self.shape)], 1)


def made_module(field: str, reference: str) -> nn.Module:
    """Call a user's function that makes a network.

    Raises:
        UserError: If it fails or returns no module.
    """
    with torch.device("cpu"):  # not that of a check or of a dry run, which have no memory
        network = made_by(field, reference)
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{field}: {reference}() returned a {type(network).__name__}, expected a "
            "torch.nn.Module"
        )
    return network


def made_scorer(
    field: str, reference: str, shape: tuple[int, ...], *arguments: Tensor
) -> nn.Module:
    """Call a user's function that makes a critic's or a value's network, and that network once.

    Args:
        field: The setting that names the function.
        reference: ``module:function``.
        shape: Shape of one sample.
        arguments: What it gets beside samples, of two rows: step indices, labels or conditions.

    Raises:
        UserError: If it makes no network, or one that does not take that or returns no scores.
    """
    network, samples = made_module(field, reference), torch.zeros(2, *shape, device="cpu")
    given = ", ".join(str(tuple(a.shape)) for a in (samples, *arguments))
    called = f"{reference}() called with {given}"
    try:
        with torch.device("cpu"), torch.no_grad():
            scores = network.eval()(samples, *arguments)
    except Exception as error:  # whatever somebody else's code raises
        raise UserError(f"{field}: {called} failed: {told(error)}") from error
    found = getattr(scores, "shape", None)
    if found not in ((2,), (2, 1)):
        raise UserError(f"{field}: {called} returned {found}, expected (2,) or (2, 1)")
    return network


def one_condition(num_classes: int, num_conditions: int) -> tuple[Tensor, ...]:
    """Labels (2,) or conditions (2, D) to try a network with, on the CPU; nothing if neither is."""
    if num_classes:
        return (torch.zeros(2, dtype=torch.int64, device="cpu"),)
    return (torch.zeros(2, num_conditions, device="cpu"),) if num_conditions else ()


def source_of(reference: str) -> str:
    """The code of the file that a function is written in, which tells its versions apart."""
    file = inspect.getsourcefile(inspect.unwrap(load_object("model.factory", reference)))
    if file is None:
        return reference
    with open(file, encoding="utf-8") as stream:
        return stream.read()


def check_network(
    network: Any, shape: tuple[int, ...], *, field: str, num_classes: int, num_conditions: int = 0
) -> None:
    """Call a user's network once.

    Args:
        network: The network itself.
        shape: Shape of one sample.
        field: Where it comes from, for the error.
        num_classes: Classes that it is conditional on; 0 for none.
        num_conditions: Numbers of the vectors that it is conditional on; 0 for none.

    Raises:
        UserError: If it does not take latents and timesteps, or returns another shape.
    """
    parameter = next(iter(getattr(network, "parameters", list)()), None)
    if parameter is None:
        raise UserError(f"{field}: has no parameters to fine-tune; give a torch.nn.Module")
    latents = torch.zeros(2, *shape, device=parameter.device)
    arguments = [torch.tensor([1.0, 2.0], device=parameter.device)]
    called = f"network(latents {tuple(latents.shape)}, timesteps (2,)"
    if num_classes:
        arguments.append(torch.zeros(2, dtype=torch.int64, device=parameter.device))
        called += ", labels (2,)"
    if num_conditions:
        arguments.append(torch.zeros(2, num_conditions, device=parameter.device))
        called += f", condition (2, {num_conditions})"
    try:
        with torch.no_grad():
            output = network(latents, *arguments)
    except Exception as error:  # whatever somebody else's code raises
        raise UserError(f"{field}: {called}) failed: {told(error)}") from error
    found = tuple(getattr(getattr(output, "sample", output), "shape", ())) or type(output).__name__
    if found != tuple(latents.shape):
        raise UserError(f"{field}: {called}) returned {found}, expected {tuple(latents.shape)}")
