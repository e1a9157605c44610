"""SIGTERM and Ctrl-C are notices, not accidents: save a checkpoint, then leave."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from sft_rl.errors import UserError


class Preempted(UserError):
    """The process was asked to stop; exits with 128 + 15, as shells expect."""

    exit_code = 143


class PreemptionNotice:
    """Listens for SIGTERM and SIGINT (Ctrl-C) inside a ``with`` block.

    Outside the training loop a signal ends the program at once. The loop asks :attr:`arrived`
    after every iteration instead, so that what it saves is consistent; the second Ctrl-C does not
    wait for that. The block ends with ``KeyboardInterrupt`` after Ctrl-C.
    """

    def __init__(self) -> None:
        self.arrived = False
        self._in_loop = self._has_looped = False
        self._by_keyboard = False
        self._before: dict[int, Any] = {}

    @property
    def in_loop(self) -> bool:
        """Whether somebody asks for the notice after every iteration."""
        return self._in_loop

    @in_loop.setter
    def in_loop(self, value: bool) -> None:
        self._in_loop = value
        self._has_looped |= value

    def __enter__(self) -> PreemptionNotice:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, Preempted) and self._by_keyboard:
            raise KeyboardInterrupt(str(error)) from None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        signal.alarm(0)  # Ray's handler, where it is still in front, would abort in 3 s
        again = self.arrived
        self.arrived = True
        when = "after fine-tuning; go on" if self._has_looped else "before fine-tuning began; start"
        if number == signal.SIGINT:
            self._by_keyboard = True
            if again or not self.in_loop:
                raise KeyboardInterrupt(f"interrupted {when} with --resume")
        elif not self.in_loop:
            raise Preempted(f"stopped by SIGTERM {when} with --resume")
