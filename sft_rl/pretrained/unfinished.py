"""A pretraining that was interrupted goes on from here, to the very weights it would have had."""

from __future__ import annotations

import shutil
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from sft_rl.storage.checkpoint import Checkpoint, DamagedCheckpoint, load, save

SAVE_EVERY_S = 60.0
"""Seconds between two checkpoints: a quick pretraining has none."""


class Unfinished:
    """Keeps what a pretraining consists of in a checkpoint, now and then.

    Args:
        folder: The checkpoint; nothing is kept if there is none. It belongs to one set of settings
            and data.
        modules: Networks by name: the one in training and its average.
        optimizer: Its moments are kept, too.
        generator: Draws data, times and noise; it goes on where it was, and so does torch's own.
    """

    def __init__(
        self,
        folder: Path | None,
        modules: dict[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> None:
        self.folder = folder
        self.modules = modules
        self.optimizer = optimizer
        self.generator = generator
        self._saved = time.monotonic()

    def resume(self) -> int:
        """Return how many iterations are done, with everything as it was after them."""
        if self.folder is None or not self.folder.exists():
            return 0
        try:
            found = load(self.folder)
        except DamagedCheckpoint as damage:
            warnings.warn(f"pretraining: {damage}; it begins again", stacklevel=2)
            return 0
        for name, module in self.modules.items():
            module.load_state_dict(found.tensors[name])
        moments = _by_parameter(found.tensors["optimizer"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        random = found.tensors["random"]
        self.generator.set_state(random["own"])
        torch.set_rng_state(random["cpu"])
        if "device" in random:
            torch.cuda.set_rng_state(random["device"], self.generator.device)
        return int(found.meta["iteration"])

    def keep(self, iteration: int) -> None:
        """Save, if it is time, what there is after some iterations."""
        if self.folder is None or time.monotonic() - self._saved < SAVE_EVERY_S:
            return
        random = {"own": self.generator.get_state(), "cpu": torch.get_rng_state()}
        if self.generator.device.type == "cuda":
            random["device"] = torch.cuda.get_rng_state(self.generator.device)
        state = self.optimizer.state_dict()["state"]
        moments = {f"{i}.{name}": t for i, of_one in state.items() for name, t in of_one.items()}
        tensors = {name: dict(module.state_dict()) for name, module in self.modules.items()}
        save(
            self.folder,
            Checkpoint(
                {**tensors, "optimizer": moments, "random": random}, {"iteration": iteration}
            ),
        )
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Remove the checkpoint: the pretraining is done."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _by_parameter(moments: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in moments.items():
        index, _, what = name.partition(".")
        state.setdefault(int(index), {})[what] = tensor
    return state
