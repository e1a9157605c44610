"""Encoded pictures where people keep them: folders, zip files, tables."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from sft_rl.data.columns import NumberTable
from sft_rl.data.decoding import endings
from sft_rl.errors import UserError

Array = np.ndarray
Encoded = Iterator[tuple[str, bytes]]
NAMES_SHOWN = 3


@dataclass(frozen=True)
class Pictures:
    """Encoded pictures, in an order that is always the same.

    Attributes:
        num: How many.
        read: Gives each one's name and bytes, one after another.
        labels: Their classes, int64, shape (num,), or None.
        classes: Names of the classes.
        notes: What was found out about them, a line each by its name.
        given: The columns of `data.condition_columns`, a row for each; None without any.
    """

    num: int
    read: Callable[[], Encoded]
    labels: Array | None = None
    classes: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)
    given: NumberTable | None = None


@dataclass(frozen=True)
class _Place:
    """Where a picture is: a file, or a member of a zip file."""

    path: PurePosixPath
    file: Path
    member: str | None = None


def pictures_of_files(root: Path, files: list[Path], *, captions: bool = False) -> Pictures:
    """Take every picture among some files and in zip files among them, whatever its name.

    The folder that a picture lies in is its class, if there are several, equally deep.

    Args:
        root: What names are relative to.
        files: Regular files at or below it.
        captions: Take what the .txt beside a picture says for its class.

    Raises:
        UserError: Naming a picture without a caption.
    """
    places, others = [], []
    known = endings()
    for file in files:
        relative = PurePosixPath(file.relative_to(root).as_posix())
        if file.suffix.lower() == ".zip":
            places += _members(file, relative.with_suffix(""), known)
        elif file.suffix.lower() in known:
            places.append(_Place(relative, file))
        else:
            others.append(str(relative))
    places.sort(key=lambda place: place.path.parts)
    if captions:
        values = np.array([_caption(place) for place in places])
        names, index = np.unique(values, return_inverse=True)
        return Pictures(len(places), partial(_read, places), index, tuple(names.tolist()))
    folders = {place.path.parent for place in places}
    labels, classes, notes = None, (), _left_out(others)
    if len(folders) > 1 and len({len(folder.parts) for folder in folders}) > 1:
        notes["classes"] = "none: pictures lie at different depths"
    elif len(folders) > 1:
        names, index = np.unique([p.path.parent.name for p in places], return_inverse=True)
        labels, classes = index.astype(np.int64), tuple(names.tolist())
    return Pictures(len(places), partial(_read, places), labels, classes, notes)


def _caption(place: _Place) -> str:
    """What the .txt beside a picture says."""
    file = place.file.with_suffix(".txt")
    if place.member is not None or not file.is_file():
        raise UserError(f"data.captions: no {file.name} beside the picture {place.file}")
    text = " ".join(file.read_text(encoding="utf-8").split())
    if not text:
        raise UserError(f"data.captions: {file} is empty")
    return text


def files_below(root: Path) -> list[Path]:
    """All regular files at or below a path but hidden ones; links are followed, in no circle."""
    if not root.is_dir():
        return [root]
    found, seen = [], set()
    for folder, folders, names in os.walk(root, followlinks=True):
        known = os.stat(folder)
        if (known.st_dev, known.st_ino) in seen:
            folders.clear()
            continue
        seen.add((known.st_dev, known.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and _is_regular(Path(folder, name)):
                found.append(Path(folder, name))
    return found


def _is_regular(file: Path) -> bool:
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except OSError:  # a link to nowhere
        return False


def _members(file: Path, prefix: PurePosixPath, known: Iterable[str]) -> list[_Place]:
    """Pictures in a zip file; nothing is unpacked onto the disk."""
    with zipfile.ZipFile(file) as archive:
        paths = [(PurePosixPath(name), name) for name in archive.namelist()]
    return [
        _Place(prefix / path, file, name)
        for path, name in paths
        if path.suffix.lower() in known
        and not any(part.startswith((".", "__MACOSX")) for part in path.parts)
    ]


def _read(places: list[_Place]) -> Encoded:
    archive: zipfile.ZipFile | None = None
    try:
        for place in places:
            if place.member is None:
                yield str(place.file), place.file.read_bytes()
                continue
            if archive is None or archive.filename != str(place.file):
                if archive is not None:
                    archive.close()
                archive = zipfile.ZipFile(place.file)
            yield f"{place.member} in {place.file}", archive.read(place.member)
    finally:
        if archive is not None:
            archive.close()


def _left_out(names: list[str]) -> dict[str, str]:
    """A note of files that are no pictures."""
    if not names:
        return {}
    more = len(names) - NAMES_SHOWN
    shown = ", ".join(names[:NAMES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
    return {"left out": f"{shown}: no pictures"}
