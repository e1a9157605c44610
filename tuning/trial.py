"""One trial: the real job, inside an actor that Ray Tune places."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from torch import nn

from sft_rl.config import ResolvedConfig
from sft_rl.data import Dataset
from sft_rl.distributed.secrets import receive_secrets
from sft_rl.errors import UserError
from sft_rl.jobs.clock import Clock
from sft_rl.jobs.fine_tuning import fine_tune
from sft_rl.learning.protocols import Observer
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.policy import load_arrays, to_arrays
from sft_rl.pretrained.full_step import FullStep
from sft_rl.runs.folder import RunFolder
from sft_rl.runs.models import Sections
from sft_rl.runs.parts import (
    full_step_key,
    full_step_network,
    measured_full_step,
    network_of,
    resolve_device,
)
from sft_rl.runs.remote import Place, create_run, holds_run, open_run
from sft_rl.runs.resolve import resolve
from sft_rl.storage.checkpoint import Checkpoint, load
from sft_rl.types import Metrics
from tuning import records
from tuning.objective import Objective
from tuning.search import DISTANCE, Search

WARNINGS = "warnings.txt"
"""File of a trial's folder."""

Pretrained = dict[str, Any]
"""The full-step model for all trials: the ``sections`` that `pretrained.path` fills in, ``key``,
``weights`` and what is measured of it, ``full_step``. Put once into the object store; a trial maps
its arrays without a copy."""


def resolve_base(search: Search) -> tuple[ResolvedConfig, Dataset, Sections | None]:
    """Resolve what all trials start from; return it, the data, what `pretrained.path` fills in.

    Raises:
        UserError: If there is no model at `pretrained.path`, or it does not go with the data.
    """
    config, sections = search.base, None
    if config.pretrained.path is not None:
        from sft_rl.pretrained.loading import read_pretrained  # here: diffusers is slow to import

        sections = read_pretrained(config.pretrained, num_classes=config.model.num_classes)
    return *resolve(config, pretrained=sections), sections


def share_pretrained(
    resolved: ResolvedConfig, data: Dataset, sections: Sections | None, observer: Observer
) -> Pretrained:
    """Load or train the full-step model once, in the driver, of what :func:`resolve_base` gives."""
    observer.phase("pretraining")
    warn = observer.warn
    network, _ = full_step_network(resolved, data, progress=observer.progress, warn=warn)
    evaluator = Evaluator(data, resolved.metrics)
    observer.phase("full-step sampler")
    return {
        "sections": sections,
        "key": full_step_key(resolved, data),
        "weights": to_arrays(network),
        "full_step": measured_full_step(
            resolved, network, evaluator, warn=warn, progress=observer.progress
        ),
    }


class TuneObserver:
    """Tells Tune of a run's progress at every evaluation.

    Args:
        objective: What is told as ``distance``.
        keep: Report checkpoints, too, which other trials may take over.

    Attributes:
        store: The run's folder, once it is open.
    """

    store: RunFolder

    def __init__(self, *, objective: Objective, keep: bool) -> None:
        self.objective = objective
        self.keep = keep
        self.last: dict[str, float] = {}

    def phase(self, name: str) -> None:
        """Phases of a trial are not told."""

    def warn(self, text: str) -> None:
        """Leave the warning in the trial's folder."""
        self.store.note(WARNINGS, text)

    def progress(self, done: int, total: int, metrics: Metrics) -> None:
        """Report evaluations; Tune may end the trial in this call."""
        if not all(name in metrics for name in self.objective.needs):
            return
        done_so_far = {"iteration": done, "percent": 100.0 * done / total}
        row = self.last = {**metrics, **done_so_far, DISTANCE: self.objective.of(metrics)}
        saved = self.store.path / "checkpoints" / f"{done:06d}"
        tune.report(row, checkpoint=tune.Checkpoint(str(saved)) if self.keep else None)

    def conclude(self, final: Metrics) -> None:
        """Report what was measured on held-out data, beside the last evaluation."""
        tune.report({**self.last, **{f"final/{name}": value for name, value in final.items()}})

    def repeat(self, total: int) -> None:
        """Report again what metrics.csv holds, before a run goes on behind it.

        A trial outlives its driver for a moment, so its checkpoint may be ahead of what the
        search has heard; and a scheduler of a new session has heard nothing yet. Of the
        checkpoints that other trials may take over only the newest is there.
        """
        with (self.store.path / "metrics.csv").open(newline="") as stream:
            table = list(csv.DictReader(stream))
        rows = [row for row in table if all(row.get(name) for name in self.objective.needs)]
        for row in rows[-1:] if self.keep else rows:
            measured = {name: float(row[name]) for name in self.objective.needs}
            self.progress(int(row["iteration"]), total, measured)


def run_trial(given: Mapping[str, Any], search: Search, pretrained: Pretrained, out: str) -> None:
    """Run the main job with one trial's values; what Tune calls.

    Args:
        given: The trial's ``index``, searched ``values`` and ``seed``.
        search: The search it belongs to.
        pretrained: The shared full-step model.
        out: Folder of the trials' runs, a path or URL.
    """
    started = time.perf_counter()
    receive_secrets()
    trial = given["trial"]
    keep = search.scheduler == "pbt"
    observer = TuneObserver(objective=search.objective, keep=keep)
    try:
        config, data = resolve(
            search.config(trial["values"], trial["seed"]), pretrained=pretrained["sections"]
        )
        store, start = begin(f"{out}/{trial['index']:03d}", config, observer)
        evaluator = Evaluator(data, config.metrics)
        network, full_step = full_step_model(store, pretrained, evaluator, observer)
        fine_tune(
            network,
            lambda: full_step,
            store=store,
            evaluator=evaluator,
            clock=Clock(started, observer),
            checkpoint=start,
        )
    except UserError as error:  # another attempt would end the same way
        # Tune insists on the metric of a scheduler that has one.
        tune.report({"refused": str(error), DISTANCE: math.inf})


def begin(
    place: Place, config: ResolvedConfig, observer: TuneObserver
) -> tuple[RunFolder, Checkpoint | None]:
    """Open a trial's run, or begin one; say where it goes on.

    That is where Tune says, by a checkpoint that another trial may have made; else where the run
    itself stood, if it was interrupted.
    """
    taken_over = tune.get_checkpoint()
    is_there = holds_run(place)
    if is_there:
        store = open_run(place)
    else:
        store = create_run(place, config, beside=(records.FILE, WARNINGS))
    observer.store = store
    if taken_over is not None:
        start = load(Path(taken_over.path))
        store.take_over(config, start)
        return store, start
    if not is_there or (found := store.resume(config)) is None:
        return store, None
    observer.repeat(config.training.num_iterations)
    return store, found


def full_step_model(
    store: RunFolder, pretrained: Pretrained | None, evaluator: Evaluator, observer: Observer
) -> tuple[nn.Module, FullStep]:
    """Return the shared model, or one of the cache where there is none or the run's is another."""
    config = store.config
    if pretrained and full_step_key(config, evaluator.data) == pretrained["key"]:
        network = network_of(config)
        load_arrays(network, pretrained["weights"])
        return network.to(resolve_device(config.device)), pretrained["full_step"]
    network, _ = full_step_network(
        config, evaluator.data, progress=observer.progress, warn=observer.warn
    )
    return network, measured_full_step(config, network, evaluator, warn=observer.warn)
