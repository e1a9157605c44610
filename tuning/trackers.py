"""Logging to other services, through Ray's own callbacks."""

from __future__ import annotations

from importlib.util import find_spec

from ray.tune import Callback

from sft_rl.errors import UserError


def trackers(name: str, *, wandb: str | None, mlflow: str | None) -> list[Callback]:
    """Return Ray's callbacks for the services asked for.

    Args:
        name: Name of the search, the group or experiment there.
        wandb: Project at Weights & Biases.
        mlflow: Tracking URI of MLflow.

    Raises:
        UserError: If the service's package is not installed.
    """
    callbacks: list[Callback] = []
    if wandb is not None:
        _require("wandb")
        from ray.air.integrations.wandb import WandbLoggerCallback

        callbacks.append(WandbLoggerCallback(project=wandb, group=name))
    if mlflow is not None:
        _require("mlflow")
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        callbacks.append(MLflowLoggerCallback(tracking_uri=mlflow, experiment_name=name))
    return callbacks


def _require(package: str) -> None:
    if find_spec(package) is None:
        raise UserError(
            f"--{package}: needs the package {package}; pip install 'sft-rl[{package}]'"
        )
