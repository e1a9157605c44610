"""Logging of trials to other services, through Ray's own callbacks."""

from __future__ import annotations

from ray.tune import Callback

from sft_rl.jobs.trackers import Trackers


def callbacks(name: str, services: Trackers) -> list[Callback]:
    """Return Ray's callbacks for the services asked for.

    Args:
        name: Name of the search, the group or experiment there.
        services: Who is told.
    """
    found: list[Callback] = []
    if services.wandb is not None:
        from ray.air.integrations.wandb import WandbLoggerCallback

        found.append(WandbLoggerCallback(project=services.wandb, group=name))
    if services.mlflow is not None:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        found.append(MLflowLoggerCallback(tracking_uri=services.mlflow, experiment_name=name))
    return found
