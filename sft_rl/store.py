"""A run's folder: config.yaml, metrics.csv, summary.json, checkpoints/ and plots/."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

import sft_rl
from sft_rl import checkpoint
from sft_rl.checkpoint import Checkpoint
from sft_rl.config import Config
from sft_rl.errors import UserError
from sft_rl.learner import Learner
from sft_rl.presets import dump_config, load_config_file
from sft_rl.types import Metrics

DISTANCE = "sliced_wasserstein"


class RunFolder:
    """Reads and writes the folder of one run.

    Args:
        path: The folder; it exists.
        config: The run's resolved configuration.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config
        self._columns: list[str] = []
        self._best: float | None = None

    @staticmethod
    def create(path: Path, config: Config) -> RunFolder:
        """Make the folder of a new run.

        Raises:
            UserError: If it holds a run already or cannot be written.
        """
        if (path / "config.yaml").exists():
            raise UserError(
                f"--out: {path} already holds a run; choose another folder, or remove it first "
                f"(rm -r {path}) to replace it"
            )
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            (path / "plots").mkdir(exist_ok=True)
            (path / "config.yaml").write_text(dump_config(config))
        except OSError as error:
            raise UserError(f"--out: cannot write to {path}: {error.strerror}") from error
        return RunFolder(path, config)

    @staticmethod
    def open(path: Path) -> RunFolder:
        """Open the folder of an existing run.

        Raises:
            UserError: If there is no run in it.
        """
        if not (path / "config.yaml").is_file():
            raise UserError(f"run: {path} holds no run (no config.yaml in it)")
        return RunFolder(path, load_config_file(str(path / "config.yaml")))

    def log(self, row: Metrics) -> None:
        """Append one iteration's numbers to metrics.csv; the first row names the columns."""
        file = self.path / "metrics.csv"
        with file.open("a", newline="") as stream:
            if not self._columns:
                self._columns = [*row, *({DISTANCE} - row.keys())]
                csv.writer(stream).writerow(self._columns)
            csv.DictWriter(stream, self._columns, restval="").writerow(row)

    def save(self, learner: Learner, *, iteration: int, distance: float | None) -> None:
        """Save a checkpoint; drop old ones beyond `keep_checkpoints`, but never the best."""
        meta = {
            "iteration": iteration,
            "version": learner.version,
            "sft_rl": sft_rl.__version__,
            "config": self.config.model_dump(mode="json"),
            DISTANCE: distance,
        }
        folder = self.path / "checkpoints"
        whole = Checkpoint(learner.state(), meta)
        checkpoint.save(folder / f"{iteration:06d}", whole)
        if distance is not None and (self._best is None or distance < self._best):
            self._best = distance
            checkpoint.save(folder / "best", whole)
        numbered = sorted(path for path in folder.iterdir() if path.name.isdigit())
        for old in numbered[: -self.config.training.keep_checkpoints]:
            shutil.rmtree(old)

    def latest(self) -> Checkpoint:
        """Load the newest checkpoint.

        Raises:
            UserError: If there is none, it is damaged, or of another configuration.
        """
        folder = self.path / "checkpoints"
        numbered = sorted(p for p in folder.glob("*") if p.name.isdigit())
        if not numbered:
            raise UserError(f"run: {self.path} has no checkpoint yet")
        loaded = checkpoint.load(numbered[-1])
        theirs, ours = loaded.meta["config"], self.config.model_dump(mode="json")
        for section in ("data", "noise", "model", "sampler"):
            if theirs[section] != ours[section]:
                raise UserError(
                    f"checkpoint: {numbered[-1]} is of another configuration: "
                    f"{section} is {theirs[section]}, the run's is {ours[section]}"
                )
        return loaded

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json, which scripts read."""
        (self.path / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def free_run_path(preset: str, num_steps: int, seed: int) -> Path:
    """Choose a folder under ``runs/`` that no run has taken yet."""
    base = Path("runs") / f"{preset}-T{num_steps}-seed{seed}"
    path, count = base, 1
    while path.exists():
        count += 1
        path = base.with_name(f"{base.name}-{count}")
    return path


def parameters_sha256(module: nn.Module) -> str:
    """Hash of a module's parameters: names, shapes and bytes."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
