"""A batch of samples scored in parts, side by side."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


class InParts:
    """Cuts batches, scores the parts, and puts the scores together in the samples' order.

    Args:
        score: Scores samples (B, *shape), and labels (B,) if there are classes, shape (B,).
        batch_size: Samples of a part; None leaves batches whole.
        at_once: How many parts are scored at a time, each waited for in a thread.
    """

    def __init__(
        self, score: Callable[..., Tensor], *, batch_size: int | None, at_once: int = 1
    ) -> None:
        self.score = score
        self.batch_size = batch_size
        self._threads = ThreadPoolExecutor(at_once, "scoring") if at_once > 1 else None

    def __call__(self, x: Tensor, *labels: Tensor) -> Tensor:
        """Score samples; an error of a part is raised here."""
        size = self.batch_size or len(x)
        parts = [[values[i : i + size] for values in (x, *labels)] for i in range(0, len(x), size)]
        if self._threads is None or len(parts) == 1:
            return torch.cat([self.score(*part) for part in parts])
        return torch.cat(list(self._threads.map(lambda part: self.score(*part), parts)))

    def close(self) -> None:
        """Let go of the threads, and of who scores elsewhere."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        if hasattr(self.score, "close"):
            self.score.close()
