"""What an object of anybody's keeps beside the run's own networks, as named tensors.

Modules and optimisers among its attributes are found by themselves; the rest is what ``state()``
declares: tensors, arrays and numbers by name. So a replay buffer, a running mean or a Q-network is
in every checkpoint, and a resumed run goes on with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sft_rl.errors import UserError
from sft_rl.storage.dtensors import split_like

State = dict[str, Tensor | np.ndarray | float]
"""Named tensors, arrays and numbers."""

ARRAY, NUMBER = "@array", "@number"
"""Ends of the names of what was no tensor, so that it comes back as what it was."""


class Stateful:
    """Something that may keep more than modules and optimisers between iterations."""

    def state(self) -> State:
        """What else it keeps: tensors, arrays and numbers by name."""
        return {}

    def load_state(self, state: State) -> None:
        """Undo :meth:`state`; by default each becomes the attribute of its name."""
        for name, value in state.items():
            own = getattr(self, name)
            if isinstance(own, Tensor) and isinstance(value, Tensor):
                value = value.to(own.device)
            setattr(self, name, value)


def kept_state(owner: object) -> dict[str, Tensor]:
    """Everything that an object keeps, as named tensors.

    Raises:
        UserError: As :func:`declared_state`.
    """
    tensors: dict[str, Tensor] = {}
    for name, part in _parts(owner).items():
        entries = part.state_dict() if isinstance(part, nn.Module) else optimizer_tensors(part)
        tensors |= {f"{name}.{entry}": tensor for entry, tensor in entries.items()}
    return tensors | declared_state(owner)


def declared_state(owner: object) -> dict[str, Tensor]:
    """What an object's ``state()`` declares, as named tensors; nothing if it has none.

    Raises:
        UserError: If it declares something that is neither tensor, array nor number.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in _declared(owner).items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            tensors[name + ARRAY] = torch.tensor(value)
        elif isinstance(value, bool | int | float):
            kind = torch.float64 if isinstance(value, float) else None
            tensors[name + NUMBER] = torch.tensor(value, dtype=kind)
        else:
            raise UserError(
                f"{_name(owner)}.state: {name!r} is a {type(value).__name__}; tensors, arrays and "
                "numbers are kept"
            )
    return tensors


def load_kept_state(owner: Any, tensors: dict[str, Tensor]) -> None:
    """Undo :func:`kept_state`.

    Raises:
        UserError: As :func:`load_declared_state`.
    """
    left = dict(tensors)
    for name, part in _parts(owner).items():
        own = [key for key in left if key.startswith(f"{name}.")]
        entries = {key.removeprefix(f"{name}."): left.pop(key) for key in own}
        if isinstance(part, nn.Module):
            load_module_tensors(part, entries)
        else:
            load_optimizer_tensors(part, entries)
    load_declared_state(owner, left)


def load_declared_state(owner: Any, tensors: dict[str, Tensor]) -> None:
    """Undo :func:`declared_state`, by ``load_state()`` or, without one, attribute by attribute.

    Raises:
        UserError: If the object declares other things now.
    """
    state = dict(_value(*item) for item in tensors.items())
    if state.keys() != (declared := _declared(owner).keys()):
        raise UserError(
            f"{_name(owner)}.state: declares {sorted(declared)}, the checkpoint has {sorted(state)}"
        )
    if state:
        getattr(owner, "load_state", partial(Stateful.load_state, owner))(state)


def load_module_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load a module's state of whole tensors, also where the module is split among learners."""
    own = module.state_dict()
    module.load_state_dict({k: split_like(v, own.get(k, v)) for k, v in tensors.items()})


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state as named tensors: ``PARAMETER.FIELD``."""
    return {
        f"{index}.{field}": tensor
        for index, entry in optimizer.state_dict()["state"].items()
        for field, tensor in entry.items()
    }


def load_optimizer_tensors(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo :func:`optimizer_tensors`; learning rates stay as they are.

    Raises:
        RuntimeError: If a tensor has not the shape of its parameter, which torch does not look at.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, field = name.partition(".")
        own = parameters[int(index)] if int(index) < len(parameters) else None
        if own is None or (tensor.ndim and tensor.shape != own.shape):
            raise RuntimeError(
                f"optimiser: {name} of shape {tuple(tensor.shape)} fits no parameter"
            )
        placed = split_like(tensor, own) if tensor.ndim else tensor
        entries.setdefault(int(index), {})[field] = placed.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})


def _parts(owner: object) -> dict[str, nn.Module | Optimizer]:
    """Modules and optimisers among an object's attributes; those of a module it keeps itself."""
    if isinstance(owner, nn.Module) or not hasattr(owner, "__dict__"):
        return {}
    found = {k: v for k, v in vars(owner).items() if isinstance(v, nn.Module | Optimizer)}
    return dict(sorted(found.items()))


def _declared(owner: Any) -> State:
    return dict(owner.state()) if hasattr(owner, "state") else {}


def _value(name: str, tensor: Tensor) -> tuple[str, Tensor | np.ndarray | float]:
    if name.endswith(NUMBER):
        return name.removesuffix(NUMBER), tensor.item()
    if name.endswith(ARRAY):
        return name.removesuffix(ARRAY), tensor.numpy()
    return name, tensor


def _name(owner: object) -> str:
    return type(owner).__qualname__
