"""A network of points that takes its time: half an hour of it costs a processor minutes."""

from __future__ import annotations

import os
import time

import torch
from torch import Tensor, nn

CALL_S = "BENCHMARK_CALL_S"
"""Environment variable: seconds that a call takes at least; they change no number."""


class SlowNetwork(nn.Module):
    """Predicts the noise in points (N, 2) at steps (N,) of 1000."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 2))
        self.seconds = float(os.environ.get(CALL_S, "0"))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the noise, later."""
        time.sleep(self.seconds)
        noise: Tensor = self.layers(torch.cat([x, t[:, None] / 1000], dim=1))
        return noise
