"""Pictures that are made once, kept in the cache, and read through a memory map."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sft_rl.storage.cache import Key, alone, cache_folder, hash_of
from sft_rl.storage.checkpoint import DamagedCheckpoint
from sft_rl.storage.files import replace_folder, saving, sync, write_synced
from sft_rl.storage.locks import share
from sft_rl.storage.room import entries, keep_within, picture_limit

Array = np.ndarray
Mapped = np.memmap[Any, Any]
Meta = dict[str, Any]
KIND = "pictures"
IMAGES, META = "images.npy", "meta.json"
CHUNK = 2**24
"""Bytes that are hashed at once."""


def cached_pictures(
    key: Key,
    shape: tuple[int, ...],
    fill: Callable[[Array], Meta],
    *,
    warn: Callable[[str], None] = warnings.warn,
) -> tuple[Array, Meta]:
    """Return pictures of the cache, or make them straight into it.

    They lie in a file and are mapped into memory, so a set may be larger than that, and processes
    share one copy. Writing to what is returned changes nothing on the disk. An entry is checked to
    the last byte when it is opened; one that is damaged or of another key is made again. Of
    several processes that miss the same pictures one makes them. Those that were used longest ago
    are removed then, until all take no more than ``SFT_RL_PICTURES_GB``.

    Args:
        key: All that determines the pictures.
        shape: Theirs, (N, channels, height, width).
        fill: Writes the pictures into an array of that shape, uint8, and returns what else is to
            be kept of them, as JSON.
        warn: Is told of an entry that could not be used, and of a process that is waited for.

    Returns:
        The pictures, uint8, and what `fill` returned.

    Raises:
        UserError: If the cache cannot be written or has no room for them, before any is made.
    """
    key = json.loads(json.dumps(key))  # as it is read back
    folder = cache_folder() / KIND / hash_of(key)
    if (entry := _entry(folder, key, shape, warn)) is not None:
        return entry
    with alone(folder, KIND, warn):
        if (entry := _entry(folder, key, shape, lambda text: None)) is not None:  # made meanwhile
            return entry
        return _made(folder, key, shape, fill)


def _entry(
    folder: Path, key: Key, shape: tuple[int, ...], warn: Callable[[str], None]
) -> tuple[Array, Meta] | None:
    if not folder.exists():
        return None
    try:
        return _open(folder, key, shape)
    except DamagedCheckpoint as damage:
        warn(f"cache: {damage}; it is computed again")
        return None


def _made(
    folder: Path, key: Key, shape: tuple[int, ...], fill: Callable[[Array], Meta]
) -> tuple[Array, Meta]:
    """Make pictures beside their place and rename them into it; others make room for them."""
    limit = picture_limit()
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with saving(folder, int(np.prod(shape))):
            aside.mkdir(parents=True)
            images = _reserved(aside / IMAGES, shape)
        made = fill(images)
        with saving(folder, images.nbytes):
            images.flush()
            meta = {"key": key, "sha256": sha256_of(images), "made": made}
            write_synced(aside / META, json.dumps(meta).encode())
            sync(aside)
            replace_folder(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    pictures = _mapped(folder / IMAGES)
    keep_within(limit, entries([KIND]))
    return pictures, json.loads(json.dumps(made))


def sha256_of(array: Array, start: bytes = b"") -> str:
    """Hash of some bytes and an array's, of which few are held at once."""
    total, flat = hashlib.sha256(start), array.reshape(-1).view(np.uint8)
    for begin in range(0, len(flat), CHUNK):
        total.update(flat[begin : begin + CHUNK].data)
    return total.hexdigest()


def _reserved(file: Path, shape: tuple[int, ...]) -> Mapped:
    """Map a new file whose room on the disk is taken: a full one would kill who writes later."""
    images = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with file.open("rb+") as stream:
            os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
    return images


def _open(folder: Path, key: Key, shape: tuple[int, ...]) -> tuple[Array, Meta]:
    """Map an entry of the cache.

    Raises:
        DamagedCheckpoint: If it is not what was written, or another's.
    """
    try:
        meta = json.loads((folder / META).read_bytes())
        images, sha256, made = _mapped(folder / IMAGES), meta["sha256"], meta["made"]
        is_ours = meta["key"] == key
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise DamagedCheckpoint(
            f"checkpoint: {folder} is not whole: {type(error).__name__} {error}"
        ) from error
    if not is_ours:
        raise DamagedCheckpoint(f"checkpoint: {folder} is an entry of another key")
    if images.shape != shape or sha256_of(images) != sha256:
        raise DamagedCheckpoint(f"checkpoint: {folder / IMAGES} is damaged (SHA-256 differs)")
    with suppress(OSError):  # a cache that is only read
        os.utime(folder / META)
    return images, made


def _mapped(file: Path) -> Mapped:
    """Map a file of an array; pages that are written to become this process's own.

    The file counts as used while the map is there.
    """
    with file.open("rb") as stream:
        share(stream)
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        return np.memmap(stream, dtype, "c", stream.tell(), shape)
