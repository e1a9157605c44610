"""Checkpoints that are whole or not there: safetensors and JSON under a manifest of hashes.

A checkpoint is a folder. It is written beside its place, synced to disk, and renamed into it, so
a reader never sees half of one. Nothing read here is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from sft_rl.errors import UserError, first_line
from sft_rl.storage.files import aside_of, replace_folder, saving, sync, write_synced

MANIFEST = "manifest.json"
META = "meta.json"
FORMAT = "sft-rl checkpoint 1"

UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
    SafetensorError,
)
"""What reading files raises that were not written here."""

TensorGroups = dict[str, dict[str, Tensor]]


class DamagedCheckpoint(UserError):
    """A checkpoint that is not what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint.

    Attributes:
        tensors: Named tensors by group; each group is a file ``GROUP.safetensors``.
        meta: Everything else, as JSON.
    """

    tensors: TensorGroups
    meta: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint into a new folder, atomically.

    Raises:
        SaveError: If it cannot be written; whatever stood at `folder` is then untouched.
    """
    files = {
        f"{group}.safetensors": safetensors.torch.save(
            {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        )
        for group, tensors in checkpoint.tensors.items()
    }
    files[META] = json.dumps(checkpoint.meta, indent=1).encode()
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files[MANIFEST] = json.dumps({"format": FORMAT, "sha256": digests}, indent=1).encode()
    aside = aside_of(folder)
    with saving(folder, sum(len(content) for content in files.values())):
        try:
            aside.mkdir(parents=True)
            for name, content in files.items():
                write_synced(aside / name, content)
            sync(aside)
            replace_folder(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint, verifying every byte.

    Raises:
        DamagedCheckpoint: If a file is missing, foreign, truncated or changed.
    """
    try:
        present = {file.name: file.is_file() for file in folder.iterdir()}
        if not present.get(MANIFEST):  # a pipe of that name would be read for ever
            raise DamagedCheckpoint(f"checkpoint: {folder} is not whole: no {MANIFEST}")
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise DamagedCheckpoint(f"checkpoint: {folder} is not a {FORMAT!r}")
        digests: dict[str, str] = manifest["sha256"]
        wanted = {MANIFEST, *digests}
        odd = present.keys() ^ wanted | {name for name in wanted if not present.get(name)}
        if odd:
            odd_names = ", ".join(sorted(odd))
            raise DamagedCheckpoint(
                f"checkpoint: {folder} has missing or foreign files: {odd_names}"
            )
        files = {name: (folder / name).read_bytes() for name in digests}
        for name, content in files.items():
            if hashlib.sha256(content).hexdigest() != digests[name]:
                raise DamagedCheckpoint(f"checkpoint: {folder / name} is damaged (SHA-256 differs)")
        tensors = {
            name.removesuffix(".safetensors"): safetensors.torch.load(content)
            for name, content in files.items()
            if name.endswith(".safetensors")
        }
        return Checkpoint(tensors, dict(json.loads(files[META])))
    except DamagedCheckpoint:
        raise
    except UNREADABLE as error:
        raise DamagedCheckpoint(
            f"checkpoint: {folder} is not whole: {type(error).__name__} {first_line(error)}"
        ) from error


def parameters_sha256(module: nn.Module) -> str:
    """Hash of a module's parameters: names, shapes and bytes."""
    return _sha256(module.named_parameters())


def state_sha256(module: nn.Module) -> str:
    """Hash of a module's state, its buffers included: names, shapes and bytes."""
    return _sha256(module.state_dict().items())


def _sha256(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)  # numpy has no bfloat16
    return digest.hexdigest()
