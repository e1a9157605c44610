"""The folder of a search, on a disk or at a URL."""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import fields, replace
from fnmatch import fnmatch
from pathlib import Path

from pyarrow.fs import FileSystem

from sft_rl.errors import UserError
from sft_rl.storage.files import check_unused
from sft_rl.storage.urls import LOCAL, Remote, is_url
from tuning.records import Records
from tuning.search import FILE, Search

OUTPUTS = ("best-T*.yaml", "*.csv", "*.png", "report.md")
"""What a report writes, and replaces."""


class SearchFolder:
    """Where a search is kept.

    One at a URL is worked on in a temporary copy. Trials write to the URL themselves.

    Args:
        place: A path or URL.

    Attributes:
        path: Its folder, or the copy's.
        place: Its path or URL, for people.
        remote: What reaches the URL; none on a disk.
    """

    def __init__(self, place: str | Path) -> None:
        self.place = str(place)
        self.remote = Remote(self.place) if is_url(place) else None
        if self.remote is None:
            self.path = Path(place)
        else:
            self._copy = tempfile.TemporaryDirectory(prefix="sft-rl-search-")
            self.path = Path(self._copy.name)
            self.remote.download(self.path, names=(FILE,))

    @property
    def name(self) -> str:
        """Its last part."""
        return Path(self.place).absolute().name

    @property
    def holds_search(self) -> bool:
        """Whether a search is there."""
        return (self.path / FILE).exists()

    def check_unused(self) -> None:
        """Refuse a folder that holds a search, or anything else.

        Raises:
            UserError: With what can be done.
        """
        if self.holds_search:
            raise UserError(
                f"--out: {self.place} already holds a search; go on with it: "
                f"sft-rl tune --resume {shlex.quote(self.place)}"
            )
        if self.remote is None:
            check_unused(self.path)
        elif self.remote.holds_but(()):
            raise UserError(
                f"--out: {self.place} is not empty; choose a new folder, nothing there is "
                "overwritten"
            )

    def going_on(self, search: Search) -> Search:
        """The search that is here, with more configurations if asked for more; else a new one.

        Args:
            search: What is asked for.

        Raises:
            UserError: If the folder holds another search, or anything else.
        """
        if not self.holds_search:
            self.check_unused()
            return search
        found = self.load()
        asked = replace(search, num_trials=found.num_trials)
        if found != asked:
            differ = [
                f.name for f in fields(found) if getattr(found, f.name) != getattr(asked, f.name)
            ]
            raise UserError(
                f"--out: {self.place} holds a search with other {', '.join(differ)}; choose a new "
                f"folder, or go on with that one: sft-rl tune --resume {shlex.quote(self.place)}"
            )
        return search if search.num_trials > found.num_trials else found

    def begin(self) -> None:
        """Make the folder.

        Raises:
            UserError: If that cannot be.
        """
        try:
            (self.path / "trials").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out: cannot write to {self.path}: {error.strerror}") from error

    def load(self) -> Search:
        """Read the search.

        Raises:
            UserError: If there is none.
        """
        if self.remote is not None and not self.holds_search:
            raise UserError(f"--resume: {self.place} holds no search")
        return Search.load(self.path)

    def save(self, search: Search) -> None:
        """Write the search."""
        search.save(self.path)
        if self.remote is not None:
            self.remote.upload(self.path, FILE)

    def records(self) -> tuple[Records, Records]:
        """Read what is known of the trials, and of those of the winners."""
        trials, final = (
            Records(self.path / name, self.remote and self.remote.inside(name))
            for name in ("trials", "final")
        )
        return trials, final

    def publish(self) -> None:
        """Bring what a report has written to the URL, and take away what it has not."""
        if self.remote is None:
            return
        ours = {f.name for f in self.path.iterdir() if any(fnmatch(f.name, o) for o in OUTPUTS)}
        for name in sorted(ours):
            self.remote.upload(self.path, name)
        for name in self.remote.files():
            if name not in ours and any(fnmatch(name, pattern) for pattern in OUTPUTS):
                self.remote.remove(name)

    def sessions(self) -> tuple[FileSystem, str, int]:
        """Where Ray keeps its own state: file system, path there, and how many sessions it has."""
        if self.remote is None:
            path = self.path.resolve() / "ray"
            return LOCAL, str(path), len(list(path.glob("session-*")))
        remote = self.remote.inside("ray")
        return *remote.on, len(remote.names())
