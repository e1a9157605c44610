"""A run's numbers at other services: Weights & Biases, and MLflow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sft_rl.config.extensions import told
from sft_rl.errors import UserError
from sft_rl.learning.protocols import Observer, PassesOn
from sft_rl.runs.folder import RunFolder
from sft_rl.types import Metrics

Log = Callable[[Metrics, int], Any]
"""Logs numbers after so many iterations."""


@dataclass(frozen=True)
class Trackers:
    """The services that are told.

    Attributes:
        wandb: Project at Weights & Biases, if it is told.
        mlflow: Tracking URI of MLflow, if it is.

    Raises:
        UserError: If the service's package is not installed.
    """

    wandb: str | None = None
    mlflow: str | None = None

    def __post_init__(self) -> None:
        for package in ("wandb", "mlflow"):
            if getattr(self, package) is not None and find_spec(package) is None:
                raise UserError(
                    f"--{package}: needs the package {package}; pip install 'sft-rl[{package}]'"
                )

    @contextmanager
    def watching(self, observer: Observer, store: RunFolder) -> Iterator[Tracked]:
        """Give an observer of a run that also logs its numbers, inside the block.

        Raises:
            UserError: If a service does not take the run.
        """
        with ExitStack() as stack:
            logs: list[Log] = []
            for name, begin in (("wandb", self._to_wandb), ("mlflow", self._to_mlflow)):
                if getattr(self, name) is None:
                    continue
                try:
                    logs.append(begin(store, stack))
                except Exception as error:  # whatever the service raises
                    raise UserError(f"--{name}: {told(error)}") from error
            yield Tracked(observer, logs)

    def _to_wandb(self, store: RunFolder, stack: ExitStack) -> Log:
        import wandb

        run = wandb.init(
            project=self.wandb,
            name=_name(store),
            id=store.config.run_id,  # a run that goes on after an interruption goes on there, too
            resume="allow",
            config=store.config.model_dump(mode="json"),
        )
        stack.enter_context(run)
        return lambda metrics, step: run.log(metrics, step=step)

    def _to_mlflow(self, store: RunFolder, stack: ExitStack) -> Log:
        import mlflow

        mlflow.set_tracking_uri(self.mlflow)
        mlflow.set_experiment(store.config.preset)
        stack.enter_context(mlflow.start_run(run_name=_name(store)))
        mlflow.log_dict(store.config.model_dump(mode="json"), "config.json")
        return lambda metrics, step: mlflow.log_metrics(metrics, step=step)


def _name(store: RunFolder) -> str:
    return Path(store.absolute_place).name


class Tracked(PassesOn):
    """An observer that also logs the numbers of fine-tuning."""

    def __init__(self, observer: Observer, logs: list[Log]) -> None:
        super().__init__(observer)
        self.logs = logs
        self._is_fine_tuning = False
        self._done = 0

    def phase(self, name: str) -> None:
        """Pass it on."""
        self._is_fine_tuning = name == "fine-tuning"
        super().phase(name)

    def progress(self, done: int, total: int, metrics: Metrics) -> None:
        """Log an iteration, pass it on."""
        super().progress(done, total, metrics)
        if self._is_fine_tuning:
            self._done = done
            self._log(metrics)

    def conclude(self, final: Metrics) -> None:
        """Log what was measured on held-out data."""
        self._log({f"final/{name}": value for name, value in final.items()})

    def _log(self, metrics: Metrics) -> None:
        for log in self.logs:
            log(metrics, self._done)
