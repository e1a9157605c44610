"""Small pieces that pretraining and fine-tuning share: decays and averages."""

import math

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def decay_factor(kind: str, progress: float) -> float:
    """Factor on a learning rate at `progress` in 0..1: none, linear or cosine, down to 0."""
    if kind == "linear":
        return 1.0 - progress
    if kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0


@torch.no_grad()
def update_average(
    average: nn.Module, module: nn.Module, *, decay: float, num_updates: int
) -> None:
    """Move an exponential moving average towards a module's parameters.

    The decay starts at 0.1 and rises to `decay` over the first updates, so that the average
    forgets where it started.
    """
    weight = 1.0 - min(decay, (num_updates + 1) / (num_updates + 10))
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), weight)


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state as named tensors: ``PARAMETER.FIELD``."""
    return {
        f"{index}.{field}": tensor
        for index, entry in optimizer.state_dict()["state"].items()
        for field, tensor in entry.items()
    }


def load_optimizer_tensors(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo :func:`optimizer_tensors`; learning rates stay as they are."""
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, field = name.partition(".")
        entries.setdefault(int(index), {})[field] = tensor.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
