"""Runs a command on the cluster whose run folder belongs on storage with a URL.

    python -m cluster.mirror s3://bucket/runs/first train swiss_roll seed=1

The command writes to the disk of its node; what is new there is copied to the storage on the way
and at the end, so that a lost node costs at most what is younger than the last copy.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pyarrow import fs

from cluster.storage import reach
from sft_rl.errors import UserError

EVERY_S = 20.0

Stamp = tuple[int, int]
"""Time of the last change and size of a file."""


def run(url: str, words: Sequence[str]) -> int:
    """Run a command with a run folder of its own, keep it at `url`; return its exit code.

    Raises:
        UserError: The storage cannot be written; nothing was run then.
    """
    with tempfile.TemporaryDirectory(prefix="sft-rl-run-") as name:
        folder = Path(name) / "run"
        mirror = Mirror(folder, url)
        # The command gets the signal, too: it saves a checkpoint, which is still copied.
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        process = subprocess.Popen([sys.executable, "-m", "sft_rl", *words, "--out", str(folder)])
        code: int | None = None
        while code is None:
            try:
                code = process.wait(timeout=EVERY_S)
            except subprocess.TimeoutExpired:
                try:
                    mirror.update()
                except UserError as error:  # the run is worth more than a copy of half of it
                    sys.stderr.write(f"warning: {error}; the next copy is due in {EVERY_S:g} s\n")
        mirror.update()
    return code if code >= 0 else 128 - code


class Mirror:
    """A copy of a folder on storage with a URL.

    Args:
        folder: The folder; it need not be there yet.
        url: Its place.

    Raises:
        UserError: The storage cannot be written, or has something there.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self._copied: dict[str, Stamp] = {}
        try:
            self._storage, self._place = reach(url)
            self._storage.create_dir(self._place, recursive=True)
            taken = self._storage.get_file_info(fs.FileSelector(self._place))
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--storage: cannot write to {url}: {reason}") from error
        if taken:
            raise UserError(f"--storage: {url} already holds something; choose another place")

    def update(self) -> None:
        """Copy what has changed, and delete what is gone.

        A checkpoint's files are complete once they have their place; one that is removed
        meanwhile is deleted the next time.

        Raises:
            UserError: The storage does not take it.
        """
        try:
            self._update(self._files())
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--storage: cannot copy to {self._place}: {reason}") from error

    def _update(self, there: dict[str, Stamp]) -> None:
        for name, stamp in there.items():
            if self._copied.get(name) != stamp and self._copy(name):
                self._copied[name] = stamp
        for name in self._copied.keys() - there.keys():
            self._storage.delete_file(f"{self._place}/{name}")
            del self._copied[name]

    def _files(self) -> dict[str, Stamp]:
        """Return all files but those that are still being written, which have hidden names."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            inside = path.relative_to(self.folder)
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            if path.is_file() and not any(part.startswith(".") for part in inside.parts):
                found[inside.as_posix()] = (status.st_mtime_ns, status.st_size)
        return found

    def _copy(self, name: str) -> bool:
        place = f"{self._place}/{name}"
        self._storage.create_dir(place.rpartition("/")[0], recursive=True)
        try:
            content = (self.folder / name).read_bytes()
        except FileNotFoundError:
            return False
        with self._storage.open_output_stream(place) as stream:
            stream.write(content)
        return True


if __name__ == "__main__":
    try:
        sys.exit(run(sys.argv[1], sys.argv[2:]))
    except UserError as error:
        sys.stderr.write(f"sft-rl: {error}\n")
        sys.exit(error.exit_code)
