"""Runs on the cluster: writes a folder, a path or a URL, to standard output as a zip in text.

Only a URL needs more than Python's own library there.
"""

import base64
import sys
import tempfile
import zipfile
from pathlib import Path

from cluster import ANSWER

CHUNK_BYTES = 12_000  # of which base64 makes 16,000 characters; Ray's log reader likes short lines


class Answer:
    """A binary stream that becomes lines of the job's log."""

    def write(self, content: bytes) -> int:
        """Write bytes as lines of base64."""
        for start in range(0, len(content), CHUNK_BYTES):
            chunk = base64.b64encode(content[start : start + CHUNK_BYTES]).decode()
            sys.stdout.write(f"{ANSWER}{chunk}\n")
        return len(content)

    def flush(self) -> None:
        """Do nothing: standard output is flushed at the end."""

    close = flush


def send(folder: Path) -> None:
    """Write every regular file under a folder; links are left out."""
    if not folder.is_dir():
        sys.exit(f"{folder} is not a folder on this node")
    with zipfile.ZipFile(Answer(), "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                archive.write(path, path.relative_to(folder))


def send_url(url: str) -> None:
    """Copy a folder from storage with a URL to this node, and send it."""
    from pyarrow.fs import copy_files

    from sft_rl.storage.urls import LOCAL, reach

    with tempfile.TemporaryDirectory(prefix="sft-rl-fetch-") as folder:
        try:
            file_system, path = reach(url)
            copy_files(path, folder, file_system, LOCAL)
        except (OSError, ValueError, ImportError) as error:
            sys.exit(f"{url}: {str(error).splitlines()[0]}")
        send(Path(folder))


if __name__ == "__main__":
    place = sys.argv[1]
    if "://" in place:
        send_url(place)
    else:
        send(Path(place).expanduser())
