"""What the training loop expects of who watches, who keeps files, and who may stop it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from sft_rl.types import Metrics

if TYPE_CHECKING:
    from sft_rl.learning.learner import Learner


class Observer(Protocol):
    """Told what happens while a run goes on."""

    def phase(self, name: str) -> None:
        """A phase of the run begins."""

    def warn(self, text: str) -> None:
        """Something is odd, but the run goes on."""

    def progress(self, done: int, total: int, metrics: Metrics) -> None:
        """`done` of `total` iterations of the phase are over; the newest numbers."""


class Silent:
    """An observer that says nothing."""

    def phase(self, name: str) -> None:
        """Say nothing."""

    def warn(self, text: str) -> None:
        """Say nothing."""

    def progress(self, done: int, total: int, metrics: Metrics) -> None:
        """Say nothing."""


class PassesOn:
    """An observer that passes on what it is told; its subclasses do more."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer

    def phase(self, name: str) -> None:
        """Pass it on."""
        self.observer.phase(name)

    def warn(self, text: str) -> None:
        """Pass it on."""
        self.observer.warn(text)

    def progress(self, done: int, total: int, metrics: Metrics) -> None:
        """Pass it on."""
        self.observer.progress(done, total, metrics)


class RunStore(Protocol):
    """Where a run leaves its metrics and checkpoints."""

    def log(self, row: Metrics) -> None:
        """Append the numbers of one iteration."""

    def show(self, picture: np.ndarray, *, iteration: int) -> None:
        """Keep a picture of the samples after `iteration` iterations, uint8, (H, W, 3)."""

    def save(self, learner: Learner, *, iteration: int) -> None:
        """Save a checkpoint after `iteration` iterations."""


class NoStore:
    """For learners of a team that do not lead."""

    def log(self, row: Metrics) -> None:
        """Leave it to the leader."""

    def show(self, picture: np.ndarray, *, iteration: int) -> None:
        """Leave it to the leader."""

    def save(self, learner: Learner, *, iteration: int) -> None:
        """Leave it to the leader, and give it what of the learner's state is here."""
        learner.state()


class Notice(Protocol):
    """What a training loop asks after every iteration."""

    in_loop: bool
    """Whether the loop is running, and so will ask."""

    @property
    def arrived(self) -> bool:
        """Whether to save and leave."""
