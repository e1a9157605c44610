"""The network that an adapter is on: a run keeps it once, beside its checkpoints."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from sft_rl.storage.checkpoint import Checkpoint, load, save

BASE = "base"
"""A checkpoint of that name in the run's folder."""


def keep_base(run: Path, network: nn.Module) -> None:
    """Write the network's state into a run's folder, if it is not there."""
    if not (run / BASE).exists():
        save(run / BASE, Checkpoint({"network": dict(network.state_dict())}, {}))


def kept_base(run: Path) -> dict[str, Tensor]:
    """Read the network's state from a run's folder.

    Raises:
        DamagedCheckpoint: If it is missing or damaged.
    """
    return load(run / BASE).tensors["network"]
