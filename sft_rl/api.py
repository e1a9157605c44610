"""The front door: what people import.

Everything here is reached as ``sft_rl.NAME``::

    import sft_rl

    config = sft_rl.load_config("swiss_roll", num_steps=4, algorithm="ppo")
    result = sft_rl.fine_tune(config, out="runs/a")
    points = result.sampler.sample(1000, seed=0)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from sft_rl.config import Config
from sft_rl.config.files import load_config as load_preset
from sft_rl.config.files import load_config_file, named_overrides
from sft_rl.data import dataset_of
from sft_rl.errors import UserError, home_expanded
from sft_rl.export.sampler import Sampler, load_sampler, sampler_of
from sft_rl.jobs.commands import train
from sft_rl.jobs.console import CallbackObserver, ConsoleObserver
from sft_rl.jobs.trackers import Trackers
from sft_rl.learning.protocols import Observer, Silent
from sft_rl.rewards import OwnReward
from sft_rl.runs.folder import RunFolder
from sft_rl.types import Metrics

__all__ = ["Result", "Sampler", "fine_tune", "load_config", "load_result", "load_sampler"]

Watch = Observer | Callable[[int, int, Metrics], None] | str | None


@dataclass(frozen=True)
class Result:
    """What fine-tuning gives.

    Attributes:
        sampler: The few-step sampler.
        metrics: The content of the run's ``summary.json``: distances before, after and of the
            full-step sampler, seconds, hashes.
        folder: The run's folder, a path or URL.
        history: One row an iteration; columns are explained in ``docs/metrics.md``.
    """

    sampler: Sampler
    metrics: dict[str, Any]
    folder: str
    history: pd.DataFrame


def load_config(
    preset: str | None = None,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    *,
    file: str | Path | None = None,
    **settings: Any,
) -> Config:
    """Build the settings of a run.

    Args:
        preset: A name from ``sft-rl presets``.
        overrides: ``["critic.width=256"]`` as on the command line, or ``{"critic.width": 256}``.
        file: A ``config.yaml``, as a run leaves it, in place of a preset.
        settings: Settings by the last part of their name, where it is the only one of that name:
            ``num_steps=4``, ``algorithm="ppo"``.

    Raises:
        UserError: For an unknown preset or setting, one whose name is not enough, or a value that
            is not allowed.
    """
    if (preset is None) == (file is None):
        raise UserError("load_config: give a preset or file=…, one of them")
    own = named_overrides(overrides, settings)
    if file is not None:
        return load_config_file(str(file), own)
    assert preset is not None
    return load_preset(preset, own)


def fine_tune(
    config: Config | str,
    *,
    out: str | Path | None = None,
    network: nn.Module | None = None,
    data: Any = None,
    reward: OwnReward = None,
    observer: Watch = "console",
    resume: bool = False,
    wandb: str | None = None,
    mlflow: str | None = None,
) -> Result:
    """Fine-tune a full-step model to few steps, measure and keep it: the main job.

    Works in a script, a notebook, a task of Ray and a trial of Tune. A Ray that is running is used
    and never stopped; else one is started for the run, if `rollout.num_workers` is above 0.

    Args:
        config: The settings, or the name of a preset.
        out: The run's folder, new unless it is resumed: a path or URL; by default a new one under
            ``runs/``.
        network: A full-step network of your own, in place of one that is trained or loaded. Called
            as ``network(latents, timesteps)`` with latents (N, *shape) in model units and times
            (N,) in training steps, it returns the noise in the latents. It is copied.
        data: Data of your own: points (N, dim), or images (N, channels, height, width), uint8: an
            array, a tensor or a data frame.
        reward: A reward of your own, to be maximised in place of a critic's score: a function,
            object or module from samples (B, *shape), in the units that it wants, to scores (B,).
            Or a list of terms, as ``["critic", {"use": function, "weight": 0.5}]``.
        observer: ``"console"`` shows progress as the command line does, and as a bar in a
            notebook; None shows nothing; a function gets ``(done, total, metrics)`` of every
            iteration; or an object with the methods of `Observer`.
        resume: Go on with the interrupted run in `out`, with the same settings and parts, to the
            very result it would have had. More `training.num_iterations` extend a finished one.
        wandb: Project at Weights & Biases that is told the numbers, too.
        mlflow: Tracking URI of MLflow, which is told them, too.

    Raises:
        UserError: In one line, for anything that cannot work, before anything starts.
        KeyboardInterrupt: After a checkpoint, which `resume` goes on from.
    """
    if isinstance(config, str):
        config = load_preset(config)
    if data is not None and config.data.factory is not None:
        raise UserError(f"data.factory: {config.data.factory} and data=… are two; leave one out")
    own_data = None if data is None else dataset_of(data, config.data)
    watching = _observer(observer)
    with watching if isinstance(watching, ConsoleObserver) else nullcontext():
        run = train(
            config,
            out if out is None or "://" in str(out) else home_expanded(out, "out"),
            observer=watching,
            resume="always" if resume else "never",
            network=network,
            data=own_data,
            reward=reward,
            trackers=Trackers(wandb, mlflow),
        )
    return _result(run.store, network)


def load_result(folder: str | Path, *, network: nn.Module | None = None) -> Result:
    """Load what a finished run gave; its data are not needed.

    Args:
        folder: The run's folder, a path or URL.
        network: A network of the kind that the run had from Python, if it had.

    Raises:
        UserError: If there is no run, or it has not come to its end.
    """
    from sft_rl.runs.remote import open_run

    return _result(open_run(folder), network)


def _result(store: RunFolder, network: nn.Module | None) -> Result:
    return Result(
        sampler=sampler_of(store, network),
        metrics=store.read_summary(),
        folder=store.place,
        history=store.read_metrics(),
    )


def _observer(given: Watch) -> Observer:
    if given == "console":
        return ConsoleObserver()
    if given is None:
        return Silent()
    if isinstance(given, str):
        raise UserError(f"observer: {given!r} is unknown; 'console', None, a function or an object")
    if all(hasattr(given, name) for name in ("phase", "warn", "progress")):
        return given  # type: ignore[return-value]
    if callable(given):
        return CallbackObserver(given)
    raise UserError("observer: needs the methods phase, warn and progress, or to be a function")
