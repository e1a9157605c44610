"""The main job as a trainable, for a Tuner of one's own: any scheduler, any searcher of Ray's.

Reached as ``sft_rl.tune``::

    from ray import tune

    tuner = tune.Tuner(
        sft_rl.tune.trainable("swiss_roll"),
        param_space={
            "sampler.num_steps": tune.grid_search([2, 4]),
            "policy.learning_rate": tune.loguniform(1e-5, 1e-3),
        },
        tune_config=tune.TuneConfig(metric="distance", mode="min", num_samples=8),
    )
    results = tuner.fit()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from pyarrow.fs import LocalFileSystem
from ray import tune

from sft_rl.config import Config
from sft_rl.config.extensions import with_typed_options
from sft_rl.config.files import load_config, named_overrides, with_overrides
from sft_rl.distributed.placement import run_bundles
from sft_rl.jobs.clock import Clock
from sft_rl.jobs.fine_tuning import fine_tune
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.runs.remote import Place
from sft_rl.runs.resolve import resolve
from sft_rl.storage.urls import Remote
from tuning import trial
from tuning.objective import load_objective

__all__ = ["resources", "trainable"]


def trainable(config: Config | str) -> Callable[[dict[str, Any]], None]:
    """Make the main job a trainable of Ray Tune, with the resources that each trial needs.

    A trial's `param_space` holds settings by their dotted keys, as on the command line. At every
    evaluation it reports all that was measured, on training data: `distance` is the metric that
    leads, `percent` how far the run is; and a checkpoint, from which a trial that died goes on and
    which other trials may take over (PBT). At its end it reports what was measured on held-out data
    as ``final/…``. The run's folder is ``run`` in the trial's; the full-step model is trained or
    loaded once for each node's cache.

    Args:
        config: What all trials share: the name of a preset, whose settings follow those that are
            searched as on the command line; or settings, of which nothing else changes.

    Returns:
        What ``tune.Tuner`` takes.
    """

    def fine_tuned(given: dict[str, Any]) -> None:
        _run_trial(_varied(config, given))

    return tune.with_resources(fine_tuned, lambda given: resources(_varied(config, given)))


def resources(config: Config | str) -> tune.PlacementGroupFactory:
    """Return what a trial of these settings asks Ray for: the learner, each worker, each scorer."""
    found = load_config(config) if isinstance(config, str) else config
    bundles = run_bundles(found.learner, found.rollout, found.reward)
    amounts = [{"CPU": bundle.cpus, "GPU": bundle.gpus} for bundle in bundles]
    labels = [dict(bundle.labels) for bundle in bundles]
    return tune.PlacementGroupFactory(
        [{k: v for k, v in a.items() if v > 0} for a in amounts],
        bundle_label_selector=labels if any(labels) else None,
    )


def _varied(config: Config | str, given: Mapping[str, Any]) -> Config:
    """A trial's settings; it saves what it reports."""
    own = named_overrides(given, {})
    found = load_config(config, own) if isinstance(config, str) else with_overrides(config, own)
    every = f"training.checkpoint_every={found.training.eval_every}"
    return with_typed_options(with_overrides(found, [every]))


def _run_trial(config: Config) -> None:
    """Run the main job in the trial's own folder."""
    started = time.perf_counter()
    objective = load_objective(config.watched, config.distance)
    observer = trial.TuneObserver(objective=objective, keep=True)
    resolved, data = resolve(config)
    store, start = trial.begin(_run_place(), resolved, observer)
    evaluator = Evaluator(data, resolved.metrics)
    network, full_step = trial.full_step_model(store, None, evaluator, observer)
    clock = Clock(started, observer)
    summary = fine_tune(
        network,
        lambda: full_step,
        store=store,
        evaluator=evaluator,
        clock=clock,
        checkpoint=start,
    )
    observer.conclude(summary["final"])


def _run_place() -> Place:
    """Where the trial's run is: in the trial's folder of the storage, a disk's or at a URL."""
    storage = tune.get_context().get_storage()
    file_system, path = storage.storage_filesystem, f"{storage.trial_fs_path}/run"
    if isinstance(file_system, LocalFileSystem):
        return path
    return Remote(f"{file_system.type_name}://{path}", file_system)
