"""State dicts in files, read without unpickling anything but tensors and plain containers."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sft_rl.errors import UserError

State = dict[str, Tensor]


def read_state(file: Path, *, field: str, variant: str | None = None) -> State:
    """Read a state dict.

    Args:
        file: .safetensors, or what ``torch.save`` wrote of a state dict or a list of them.
        field: The setting that names it, for the error.
        variant: ``ema`` takes the last state dict of a list, which is the averaged model.

    Raises:
        UserError: If the file is not there, is damaged or holds no state dict.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{field}: cannot read {file}: {reason}") from error
    if isinstance(content, list | tuple):
        states = [part for part in content if _is_state(part)]
        content = (states[-1] if variant == "ema" else states[0]) if states else None
    if not _is_state(content):
        raise UserError(f"{field}: {file} holds no state dict of tensors")
    return dict(content)


def load_own_weights(network: nn.Module, file: Path) -> None:
    """Put the weights of `model.weights` into a network of one's own.

    Raises:
        UserError: If they cannot be read or are of another network.
    """
    state = read_state(file, field="model.weights")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(
            f"model.weights: {file} does not fit the network of model.factory: {reason}"
        ) from error


def file_sha256(*files: Path) -> str:
    """Return the hash of a file, or of several one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _is_state(content: object) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    )
