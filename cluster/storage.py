"""Where run folders are: in a folder of the nodes, or on storage with a URL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

URLS = ("s3://", "gs://", "abfs://", "hdfs://", "file://")
"""What pyarrow reaches by itself; credentials are the nodes' own."""

Storage = Any
"""A ``pyarrow.fs.FileSystem``; pyarrow has no types to check against."""


def is_url(place: str) -> bool:
    """Whether a place is on storage with a URL."""
    return place.startswith(URLS)


def reach(place: str) -> tuple[Storage, str]:
    """Return the storage that a place is on, and its path there.

    Raises:
        OSError: It cannot be reached.
        ValueError: The URL is wrong.
    """
    from pyarrow import fs

    if is_url(place):
        storage, path = fs.FileSystem.from_uri(place)
        return storage, path.rstrip("/")
    return fs.LocalFileSystem(), str(Path(place).expanduser())
