"""Runs on the cluster, alone: writes a folder's files to standard output as text.

The folder is a path, or a URL.
Lines of JSON with lines of base64 between them: ``{"files", "bytes"}``, then for each file
``{"path"}``, its content, ``{"sha256"}``; an error is ``{"error"}``. `cluster.fetch` reads it.
"""

import base64
import hashlib
import json
import sys
import tempfile
from pathlib import Path

CHUNK_BYTES = 12_000  # of which base64 makes 16,000 characters; Ray's log reader likes short lines


def send(folder: Path) -> None:
    """Write every regular file under a folder; links are left out."""
    if not folder.is_dir():
        _say(error=f"{folder} is not a folder on this node")
        return
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink()]
    _say(files=len(files), bytes=sum(p.stat().st_size for p in files))
    for path in files:
        _say(path=path.relative_to(folder).as_posix())
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
                sys.stdout.write(base64.b64encode(chunk).decode() + "\n")
        _say(sha256=digest.hexdigest())


def _say(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")


def send_url(url: str) -> None:
    """Copy a folder from storage with a URL to this node, and send it."""
    from pyarrow import fs

    with tempfile.TemporaryDirectory(prefix="sft-rl-fetch-") as name:
        try:
            fs.copy_files(url, name)
        except (OSError, ValueError) as error:
            _say(error=f"{url}: {str(error).splitlines()[0]}")
            return
        send(Path(name))


if __name__ == "__main__":
    if "://" in sys.argv[1]:
        send_url(sys.argv[1])
    else:
        send(Path(sys.argv[1]).expanduser())
