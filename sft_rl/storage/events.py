"""TensorBoard events: metrics.csv and the pictures of the samples, to watch a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from sft_rl.storage.files import saving
from sft_rl.types import Metrics

Array = np.ndarray


class EventLog:
    """Remembers numbers and pictures, and writes them into an event file when it is told to.

    tensorboardX is imported for the first writing, so that no iteration before waits for it. Its
    ``SummaryWriter`` writes in a thread, where a full disk would go silent; this does not.

    Args:
        folder: Where event files go; each process that works on a run begins one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pending: list[tuple[float, int, str, float | Array]] = []
        self._writer: Any = None
        self._resumed_at: int | None = None  # the iteration

    def add_row(self, row: Metrics) -> None:
        """Remember the numbers of an iteration."""
        numbers = dict(row)
        iteration = int(numbers.pop("iteration"))
        self._pending += [(time.time(), iteration, *number) for number in numbers.items()]

    def add_picture(self, iteration: int, picture: Array) -> None:
        """Remember a picture, RGB, uint8, shape (height, width, 3)."""
        self._pending.append((time.time(), iteration, "samples", picture))

    def resume(self, iteration: int) -> None:
        """Let TensorBoard forget what was written beyond an iteration: it will come again."""
        self._resumed_at = iteration

    def write(self) -> None:
        """Write what is remembered; return when the disk has it.

        Raises:
            SaveError: If there is no room or no permission.
        """
        if not self._pending:
            return
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import image, scalar

        with saving(self.folder):
            if self._writer is None:
                self._writer = self._open()
            for wall_time, step, name, value in self._pending:
                if isinstance(value, np.ndarray):
                    summary = image(name, value, dataformats="HWC")
                else:
                    summary = scalar(name, value)
                self._writer.write_event(Event(wall_time=wall_time, step=step, summary=summary))
            self._writer.flush()
        self._pending.clear()

    def _open(self) -> Any:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.folder.mkdir(exist_ok=True)
        # Names hold whole seconds; the iteration tells apart what a quick restart begins.
        writer = EventsWriter(str(self.folder / "events"), f".{self._resumed_at or 0}")
        if self._resumed_at is not None:
            first = self._resumed_at + 1 if self._resumed_at else 0
            start = SessionLog(status=SessionLog.START)
            writer.write_event(Event(step=first, session_log=start))
        return writer
