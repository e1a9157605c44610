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
from sft_rl.checkpoint import Checkpoint, TensorGroups
from sft_rl.config import Config
from sft_rl.errors import UserError
from sft_rl.learner import Learner
from sft_rl.networks import noise_network
from sft_rl.policy import DenoisingPolicy
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
                self._columns = [
                    *row,
                    *(name for name in self._sparse_columns() if name not in row),
                ]
                csv.writer(stream).writerow(self._columns)
            csv.DictWriter(stream, self._columns, restval="").writerow(row)

    def _sparse_columns(self) -> list[str]:
        """Columns that only iterations with an evaluation fill."""
        drifts = [f"log_prob_drift_{k}" for k in range(self.config.sampler.num_steps)]
        return [DISTANCE, "kl_to_pretrained", *drifts]

    def save(self, learner: Learner, *, iteration: int) -> None:
        """Save a checkpoint, which holds the best policy, too; drop those beyond the newest N."""
        meta = {
            "iteration": iteration,
            "version": learner.version,
            "sft_rl": sft_rl.__version__,
            "config": self.config.model_dump(mode="json"),
            "best_distance": learner.best_distance,
        }
        folder = self.path / "checkpoints"
        checkpoint.save(folder / f"{iteration:06d}", Checkpoint(learner.state(), meta))
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

    def result(self, shape: tuple[int, ...]) -> tuple[DenoisingPolicy, TensorGroups]:
        """Load the policy a run gave, frozen, and all tensors of the checkpoint it is in."""
        tensors, config = self.latest().tensors, self.config
        policy = DenoisingPolicy.from_config(config, noise_network(config, shape), shape)
        averaged = "average" if config.policy.ema_decay > 0 else "policy"
        policy.load_state_dict(tensors["best" if config.training.select_best else averaged])
        return policy.requires_grad_(False), tensors

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
