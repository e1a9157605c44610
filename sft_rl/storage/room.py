"""What the cache holds, and how it gets emptied: by hand, or of what was used longest ago."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sft_rl.errors import UserError, did_you_mean
from sft_rl.storage.cache import cache_folder
from sft_rl.storage.locks import Locked, lock, unused

KINDS = ("pretrained", "full_step", "classifier", "quantiles", "pictures")
LIMIT = "SFT_RL_PICTURES_GB"
"""The variable that says how much room decoded pictures may take."""
USUAL_GB = 50.0
GB = 10**9


@dataclass(frozen=True)
class Entry:
    """A value of the cache.

    Attributes:
        folder: Where it lies, in the folder of its kind.
        num_bytes: Its size.
        used: When it was last used, in seconds since 1970.
    """

    folder: Path
    num_bytes: int
    used: float

    @property
    def kind(self) -> str:
        """What it is."""
        return self.folder.parent.name


def entries(kinds: Sequence[str] = ()) -> list[Entry]:
    """What lies in the cache, of some kinds or all; what was used last comes last.

    Raises:
        UserError: If there is no such kind.
    """
    found = []
    for kind in kinds or KINDS:
        if kind not in KINDS:
            raise UserError(f"KIND: {kind!r} is unknown; {did_you_mean(kind, KINDS)}")
        for folder in cache_folder().glob(f"{kind}/*"):
            try:
                stats = [path.stat() for path in folder.iterdir()]
            except OSError:  # a lock's file, or gone meanwhile
                continue
            used = max((stat.st_mtime for stat in stats), default=0.0)
            found.append(Entry(folder, sum(stat.st_size for stat in stats), used))
    return sorted(found, key=lambda entry: entry.used)


def remove(entry: Entry) -> bool:
    """Remove an entry, unless a living process makes it or has it mapped; tell whether it went."""
    name = entry.folder.name.removeprefix(".").partition(".")[0]
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(entry.folder.with_name(f".{name}.lock")))
        except (Locked, OSError):
            return False
        mapped = entry.folder.glob("*.npy")
        if not all([stack.enter_context(unused(file)) for file in mapped]):
            return False
        shutil.rmtree(entry.folder, ignore_errors=True)
    return not entry.folder.exists()


def keep_within(limit: int, of: Sequence[Entry]) -> None:
    """Remove what was used longest ago, and so comes first, until the rest takes so many bytes."""
    total = sum(entry.num_bytes for entry in of)
    for entry in of[:-1]:  # the newest stays, whatever its size
        if total <= limit:
            return
        if remove(entry):
            total -= entry.num_bytes


def picture_limit() -> int:
    """Bytes that decoded pictures may take.

    Raises:
        UserError: If ``SFT_RL_PICTURES_GB`` is no size.
    """
    given = os.environ.get(LIMIT) or str(USUAL_GB)
    try:
        limit = int(float(given) * GB)
    except (ValueError, OverflowError):
        limit = -1
    if limit < 0:
        raise UserError(f"{LIMIT}: got {given!r}; allowed: a number of gigabytes, such as 50")
    return limit


def clear(kinds: Sequence[str] = ()) -> tuple[int, int]:
    """Remove all that no living process uses; return how many entries went, and how many stay.

    Raises:
        UserError: If there is no such kind.
    """
    went = [remove(entry) for entry in entries(kinds)]
    return sum(went), len(went) - sum(went)


def contents(kinds: Sequence[str] = ()) -> dict[str, list[str]]:
    """Tell of each kind of entry how many there are, and how much room they take, as a table.

    Raises:
        UserError: If there is no such kind.
    """
    rows, chosen = {"": ["entries", "MB"]}, entries(kinds)
    for kind in kinds or KINDS:
        sizes = [entry.num_bytes for entry in chosen if entry.kind == kind]
        rows[kind] = [str(len(sizes)), f"{sum(sizes) / 1e6:,.1f}"]
    return rows
