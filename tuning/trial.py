"""One trial: the real job, inside an actor that Ray Tune places."""

from __future__ import annotations

import csv
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from torch import nn

from sft_rl.config import Config
from sft_rl.config.files import dump_config
from sft_rl.data import Dataset, load_dataset
from sft_rl.errors import UserError
from sft_rl.jobs.build import check_data, resolve_device
from sft_rl.jobs.clock import Clock
from sft_rl.jobs.fine_tuning import fine_tune
from sft_rl.learning.protocols import Observer
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.networks import noise_network
from sft_rl.policy import load_arrays, to_arrays
from sft_rl.pretrained.full_step import Summary, full_step_metrics
from sft_rl.pretrained.training import cache_key, pretrained_network, with_pretrained
from sft_rl.rollout.runner import Weights, num_threads
from sft_rl.runs.folder import RunFolder
from sft_rl.storage import checkpoint
from sft_rl.storage.checkpoint import Checkpoint
from sft_rl.types import Metrics
from tuning.search import DISTANCE, Search

Pretrained = dict[str, Any]
"""The full-step model for all trials: the ``sections`` that `pretrained.path` fills in, ``key``,
``weights`` and ``full_step`` metrics. Put once into the object store; a trial maps its arrays
without a copy."""


def share_pretrained(config: Config, observer: Observer) -> Pretrained:
    """Load or train the full-step model once, in the driver.

    Raises:
        UserError: If there is none at `pretrained.path`, or it does not go with the data.
    """
    sections: dict[str, Any] = {}
    if config.pretrained.path is not None:
        from sft_rl.pretrained.loading import (  # diffusers is slow to import
            filled_in,
            read_pretrained,
        )

        sections = read_pretrained(config)
        config = filled_in(config, sections)
    data = load_dataset(config.data)
    check_data(config, data)
    observer.phase("pretraining")
    with num_threads(config.learner.num_threads):
        network, _ = pretrained_network(
            config, data, device=resolve_device(config.device), progress=observer.progress
        )
        full_step = full_step_metrics(config, network, Evaluator(data, config))
    weights: Weights = to_arrays(network)
    key = cache_key(config, data)
    return {"sections": sections, "key": key, "weights": weights, "full_step": full_step}


class TuneObserver:
    """Tells Tune of a run's progress at every evaluation.

    Args:
        folder: The run's folder.
        distance: Name of the distance that leads the run.
        keep: Report checkpoints, too, which other trials may take over.
    """

    def __init__(self, folder: Path, *, distance: str, keep: bool) -> None:
        self.folder = folder
        self.distance = distance
        self.keep = keep

    def phase(self, name: str) -> None:
        """Phases of a trial are not told."""

    def warn(self, text: str) -> None:
        """Leave the warning in the trial's folder."""
        with (self.folder / "warnings.txt").open("a") as file:
            file.write(f"{text}\n")

    def progress(self, done: int, total: int, metrics: Metrics) -> None:
        """Report evaluations; Tune may end the trial in this call."""
        if self.distance not in metrics:
            return
        distance = metrics[self.distance]
        row = {"iteration": done, "percent": 100.0 * done / total, DISTANCE: distance}
        saved = self.folder / "checkpoints" / f"{done:06d}"
        tune.report(row, checkpoint=tune.Checkpoint(str(saved)) if self.keep else None)

    def repeat(self, total: int) -> None:
        """Report again what metrics.csv holds, before a run goes on behind it.

        A trial outlives its driver for a moment, so its checkpoint may be ahead of what the
        search has heard; and a scheduler of a new session has heard nothing yet. Of the
        checkpoints that other trials may take over only the newest is there.
        """
        with (self.folder / "metrics.csv").open(newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if row[self.distance]]
        for row in rows[-1:] if self.keep else rows:
            self.progress(int(row["iteration"]), total, {self.distance: float(row[self.distance])})


def run_trial(given: Mapping[str, Any], search: Search, pretrained: Pretrained, out: str) -> None:
    """Run the main job with one trial's values; what Tune calls.

    Args:
        given: The trial's ``index`` and searched ``values``.
        search: The search it belongs to.
        pretrained: The shared full-step model.
        out: Folder of all trials' runs.
    """
    started = time.perf_counter()
    folder = Path(out) / f"{given['trial']['index']:03d}"
    keep = search.scheduler == "pbt"
    observer = TuneObserver(folder, distance=search.metrics[0], keep=keep)
    try:
        config = resolved(search.config(given["trial"]["values"]), pretrained)
        store, start = _prepare(folder, config, observer)
        data = load_dataset(config.data)
        evaluator = Evaluator(data, config)
        network, full_step = _full_step_model(config, data, pretrained, evaluator, observer)
        fine_tune(
            network,
            full_step,
            store=store,
            evaluator=evaluator,
            clock=Clock(started, observer),
            checkpoint=start,
        )
    except UserError as error:  # another attempt would end the same way
        # Tune insists on the metric of a scheduler that has one.
        tune.report({"refused": str(error), DISTANCE: math.inf})


def resolved(config: Config, pretrained: Pretrained) -> Config:
    """Fill in what `pretrained.path` says, as the driver read it unless the trial's is another."""
    own, shared = config.pretrained, pretrained["sections"].get("pretrained")
    if shared is not None and (own.path, own.variant) == (shared["path"], shared["variant"]):
        from sft_rl.pretrained.loading import filled_in

        return filled_in(config, pretrained["sections"])
    return with_pretrained(config)


def _prepare(
    folder: Path, config: Config, observer: TuneObserver
) -> tuple[RunFolder, Checkpoint | None]:
    """Open a trial's run folder; say where to start, and tell the search of what is done.

    Returns:
        The folder, and another trial's checkpoint to take over, the one that a killed attempt
        left, or none.
    """
    taken_over = tune.get_checkpoint()
    file = folder / "config.yaml"
    if not file.exists():
        return RunFolder.create(folder, config), None
    if taken_over is None:
        store = RunFolder.open(folder)
        own = store.resume(config)
        if own is not None:
            observer.repeat(config.training.num_iterations)
        return store, own
    start = checkpoint.load(Path(taken_over.path))
    file.write_text(dump_config(config))
    for later in (folder / "checkpoints").glob("[0-9]*"):
        if int(later.name) > start.meta["iteration"]:
            shutil.rmtree(later)
    store = RunFolder.open(folder)
    store.resume(config)  # cuts metrics.csv
    return store, start


def _full_step_model(
    config: Config,
    data: Dataset,
    pretrained: Pretrained,
    evaluator: Evaluator,
    observer: TuneObserver,
) -> tuple[nn.Module, Summary]:
    """Return the shared model, or one of the cache where the trial's own is another."""
    device = resolve_device(config.device)
    if cache_key(config, data) == pretrained["key"]:
        network = noise_network(config, data.shape)
        load_arrays(network, pretrained["weights"])
        return network.to(device), pretrained["full_step"]
    with num_threads(config.learner.num_threads):
        network, _ = pretrained_network(config, data, device=device, progress=observer.progress)
        return network, full_step_metrics(config, network, evaluator)
