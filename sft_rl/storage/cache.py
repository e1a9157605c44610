"""What can be computed again is kept under all that determines it, and checked when it is read."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch

from sft_rl.errors import UserError
from sft_rl.storage.checkpoint import Checkpoint, DamagedCheckpoint, load, save
from sft_rl.storage.locks import lock

Key = dict[str, Any]
"""All that determines a value, and nothing else; JSON."""


def cache_folder() -> Path:
    """``SFT_RL_CACHE``, or a folder among the user's caches."""
    own = os.environ.get("SFT_RL_CACHE")
    return Path(own).expanduser() if own else platformdirs.user_cache_path("sft-rl")


def cached(
    kind: str,
    key: Key,
    make: Callable[[], Checkpoint],
    *,
    warn: Callable[[str], None] = warnings.warn,
) -> tuple[Checkpoint, bool]:
    """Return a value of the cache, or make it and keep it.

    The key is kept inside the entry and compared, so an entry in another's place is noticed; a
    damaged one is, too. Either is made again and replaced. Of several processes that miss the same
    value one makes it, and the others wait for that.

    Args:
        kind: Folder of the values of its kind.
        key: What determines the value.
        make: Computes it; its meta may use any name but ``key``.
        warn: Is told of an entry that could not be used, and of a process that is waited for.

    Returns:
        The value, and whether it was there already.

    Raises:
        UserError: If a value is missing and the cache cannot be written.
    """
    key = json.loads(json.dumps(key))  # as it is read back
    folder = cache_folder() / kind / hash_of(key)
    if (entry := _entry(folder, key, warn)) is not None:
        return entry, True
    with alone(folder, kind, warn):
        if (entry := _entry(folder, key, lambda text: None)) is not None:  # made meanwhile
            return entry, True
        made = make()
        save(folder, Checkpoint(made.tensors, {**made.meta, "key": key}))
    return made, False


def unfinished(kind: str, key: Key) -> Path:
    """Where who makes a value may keep how far it is; only one process makes it."""
    return cache_folder() / kind / f".{hash_of(key)}.unfinished"


def _entry(folder: Path, key: Key, warn: Callable[[str], None]) -> Checkpoint | None:
    if not folder.exists():
        return None
    try:
        entry = load(folder)
        if entry.meta.get("key") != key:
            raise DamagedCheckpoint(f"checkpoint: {folder} is an entry of another key")
    except DamagedCheckpoint as damage:
        warn(f"cache: {damage}; it is computed again")
        return None
    return entry


@contextmanager
def alone(folder: Path, kind: str, warn: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time make an entry; see that it can be kept before it is made."""
    file = folder.with_name(f".{folder.name}.lock")
    with ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(
                lock(
                    file,
                    patience_s=math.inf,
                    waiting=lambda owner: warn(f"cache: waiting for {owner}, which makes {kind}"),
                    warn=warn,
                )
            )
        except OSError as error:
            raise UserError(
                f"cache: cannot write to {folder.parent}: {error.strerror}; set SFT_RL_CACHE to a "
                "folder that can be written"
            ) from error
        yield


def hash_of(key: Key) -> str:
    """Name of a key's entry."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]


def arithmetic(device: torch.device) -> Key:
    """What the last bits of a computation depend on, beside what is computed.

    The versions and kernels that compute; on a CPU how many threads share a sum.
    """
    if device.type == "cuda":
        return {
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(device),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }
    return {
        "torch": torch.__version__,
        "device": f"cpu {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
    }


def digest(*arrays: np.ndarray) -> str:
    """Hash of some arrays: types, shapes and bytes."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()
