"""What is known of each trial, on disk, so that a search outlives its driver."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sft_rl.errors import UserError
from sft_rl.storage.urls import Remote
from tuning.distribution import Values

State = Literal["waiting", "running", "done", "stopped", "failed"]

FILE = "trial.json"


@dataclass(frozen=True)
class Record:
    """One trial.

    Attributes:
        index: Its number.
        values: The searched keys; under population-based training the newest ones.
        seed: Seed of its run.
        state: ``stopped`` is early, by the scheduler; ``failed`` is after all retries.
        percent: How much of its iterations is over.
        attempts: How often it was started.
        error: Why it failed, one line.
        curve: Validation distance by iteration, as pairs.
    """

    index: int
    values: Values
    seed: int
    state: State = "waiting"
    percent: float = 0.0
    attempts: int = 0
    error: str = ""
    curve: tuple[tuple[int, float], ...] = field(default=())

    @property
    def is_over(self) -> bool:
        """Whether it came to an end, a bad one included."""
        return self.state in ("done", "stopped", "failed")

    def updated(self, **changes: Any) -> Record:
        """Return a copy with changes."""
        return replace(self, **changes)


class Records:
    """Trials by number; every change is on disk before it is answered.

    Args:
        folder: Folder of their runs, or a copy of what is read of it.
        remote: That folder, if it is at a URL.
    """

    def __init__(self, folder: Path, remote: Remote | None = None) -> None:
        self.folder = folder
        self._remote = remote
        for name in remote.names() if remote is not None else ():
            (folder / name).mkdir(parents=True, exist_ok=True)
            self._fetch(f"{name}/{FILE}")
        self._records: dict[int, Record] = {}
        for file in sorted(folder.glob(f"*/{FILE}")):
            record = _read(file)
            self._records[record.index] = record

    def __getitem__(self, index: int) -> Record:
        return self._records[index]

    def __contains__(self, index: int) -> bool:
        return index in self._records

    def __len__(self) -> int:
        return len(self._records)

    def all(self) -> list[Record]:
        """Return all trials in the order of their numbers."""
        return [self._records[index] for index in sorted(self._records)]

    def run_folder(self, index: int) -> Path:
        """Return the folder of a trial's run."""
        return self.folder / f"{index:03d}"

    @property
    def place(self) -> str:
        """The path or URL by which trials find the folder."""
        return str(self.folder.resolve()) if self._remote is None else self._remote.url

    def settings(self, index: int) -> Path:
        """Return the file of a finished trial's settings."""
        return self._fetch(f"{index:03d}/config.yaml")

    def summary(self, index: int) -> dict[str, Any] | None:
        """Return a finished trial's summary.json."""
        file = self._fetch(f"{index:03d}/summary.json")
        return json.loads(file.read_text()) if file.is_file() else None

    def put(self, record: Record) -> None:
        """Keep a trial's newest state, here and on disk."""
        self._records[record.index] = record
        folder = self.run_folder(record.index)
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f".{FILE}.tmp"
        aside.write_text(json.dumps(asdict(record), indent=1) + "\n")
        os.replace(aside, folder / FILE)
        if self._remote is not None:
            self._remote.upload(self.folder, f"{folder.name}/{FILE}")

    def _fetch(self, name: str) -> Path:
        """Return a file of a run, brought here once if it is at a URL."""
        file = self.folder / name
        if self._remote is not None and not file.exists():
            self._remote.download(self.folder, names=(name,))
        return file


def _read(file: Path) -> Record:
    try:
        tree = json.loads(file.read_text())
        tree["curve"] = tuple((int(i), float(d)) for i, d in tree["curve"])
        return Record(**tree)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--resume: {file} is damaged: {error}") from error
