"""Where an episode starts, as `reset(options=…)` gives it: a latent, a label or vector, or both."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.process import DenoisingProcess
from sft_rl.errors import UserError, did_you_mean

OPTIONS = ("latent", "label", "condition")


def given_start(
    options: dict[str, Any] | None, *, lead: tuple[int, ...], process: DenoisingProcess
) -> tuple[Tensor | None, Tensor | None]:
    """Check the options of a reset.

    Args:
        options: ``latent`` of shape (*lead, *shape), in place of pure noise, ``label`` of shape
            (*lead) or ``condition`` of shape (*lead, D), in place of a random one, or neither.
        lead: () of a single env, (B,) of a batched one.
        process: Knows the shape of a sample, the number of classes and that of a vector.

    Returns:
        Latent, float32, and label, int64, or vector, float32, each with its `lead`, or None.

    Raises:
        UserError: Naming the option, what was given and what is allowed.
    """
    options = options or {}
    for name in options:
        if name not in OPTIONS:
            raise UserError(f"reset: option {name!r} is unknown; {did_you_mean(name, OPTIONS)}")
    latent, label = options.get("latent"), options.get("label")
    if latent is not None:
        latent = _finite("latent", latent, (*lead, *process.shape))
    vector, classes = options.get("condition"), process.num_classes
    if vector is not None:
        if process.conditions is None:
            raise UserError("reset: option 'condition' is for a model of vectors, this is none")
        return latent, _finite("condition", vector, (*lead, process.conditions.shape[1]))
    if label is not None:
        if not classes:
            raise UserError("reset: option 'label' is for a class-conditional model, this is none")
        label = _numbers("label", label, lead)
        if label.is_floating_point() or ((label < 0) | (label >= classes)).any():
            raise UserError(f"reset: option 'label' must hold whole numbers 0 to {classes - 1}")
        label = label.long()
    return latent, label


def _finite(name: str, given: Any, expected: tuple[int, ...]) -> Tensor:
    """As :func:`_numbers`, float32, and finite."""
    found = _numbers(name, given, expected).float()
    if not torch.isfinite(found).all():
        raise UserError(f"reset: option {name!r} holds numbers that are not finite")
    return found


def _numbers(name: str, given: Any, expected: tuple[int, ...]) -> Tensor:
    """Give an array, a tensor or a number as a tensor of its own memory, of that shape."""
    try:
        found = (
            given.detach().clone() if isinstance(given, Tensor) else torch.tensor(np.asarray(given))
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"reset: option {name!r} holds no numbers: {given!r}") from error
    if tuple(found.shape) != expected:
        raise UserError(
            f"reset: option {name!r} has shape {tuple(found.shape)}, expected {expected}"
        )
    return found
