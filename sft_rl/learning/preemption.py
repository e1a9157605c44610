"""SIGTERM is a notice, not an accident: save a checkpoint, then leave."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from sft_rl.errors import UserError


class Preempted(UserError):
    """The process was asked to stop; exits with 128 + 15, as shells expect."""

    exit_code = 143


class PreemptionNotice:
    """Listens for SIGTERM inside a ``with`` block.

    Outside the training loop the signal ends the program at once. The loop asks
    :attr:`arrived` after every iteration instead, so that what it saves is consistent.
    """

    def __init__(self) -> None:
        self.arrived = False
        self.in_loop = False
        self._before: signal.Handlers | int | object = None

    def __enter__(self) -> PreemptionNotice:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.arrived = True
        signal.alarm(0)  # Ray's handler, where it is still in front, would abort in 3 s
        if not self.in_loop:
            raise Preempted("stopped by SIGTERM before fine-tuning began")
