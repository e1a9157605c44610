"""Run a search, or what is left of one, on Ray Tune."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from ray import tune

from sft_rl.config import RayConfig
from sft_rl.distributed.session import RaySession
from sft_rl.progress import ConsoleObserver
from tuning.ledger import Ledger
from tuning.progress import SearchView
from tuning.records import Records
from tuning.resources import bundles, cluster, refuse_if_too_large
from tuning.search import Search
from tuning.trial import Pretrained, run_trial, share_pretrained

MAX_FAILURES = 2
"""How often a trial that dies is started again."""


def run_search(
    search: Search, folder: Path, *, address: str | None, trackers: list[tune.Callback]
) -> Records:
    """Run the trials that are not finished; those that failed get another chance.

    Nothing of Ray's own state is read back: the records and the runs' checkpoints are enough, so
    a search goes on after its driver was killed, and after its folder has moved.

    Args:
        search: The search, checked.
        folder: Its folder.
        address: Cluster to join; none starts a Ray on this machine.
        trackers: Ray's callbacks that log elsewhere, too.

    Returns:
        The records of all trials.
    """
    records = Records(folder)
    finished = {r.index for r in records.all() if r.state in ("done", "stopped")}
    waiting = [index for index in range(search.num_trials) if index not in finished]
    if not waiting:
        return records
    config = search.config({})
    with RaySession(RayConfig(address=address), config.rollout) as session:
        with ConsoleObserver() as observer:
            pretrained = share_pretrained(config, observer)
        session.wait()
        refuse_if_too_large(largest_request(search), cluster())
        with SearchView(search, records) as view:
            _fit(search, folder, records, waiting, pretrained, [Ledger(records, view), *trackers])
    return records


def largest_request(search: Search) -> list[dict[str, float]]:
    """Return the placement group of the trial that asks for most."""
    sizes = ("rollout.num_workers", "rollout.num_cpus_per_worker", "rollout.num_gpus_per_worker")
    searched = (*sizes, "learner.num_cpus", "learner.num_gpus")
    values = {
        key: max(distribution.values)
        for key, distribution in search.space.distributions.items()
        if key in searched
    }
    return bundles(search.config(values))


def _fit(
    search: Search,
    folder: Path,
    records: Records,
    waiting: list[int],
    pretrained: Pretrained,
    callbacks: list[tune.Callback],
) -> None:
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # our table says what happened
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # with verbose=0 this is what silences Ray's
    trainable = tune.with_parameters(
        run_trial, search=search, pretrained=pretrained, out=str(folder.resolve() / "trials")
    )
    space: dict[str, Any] = {}
    searcher = None
    if search.searcher == "optuna":
        from tuning.optuna_search import OptunaSearcher

        searcher = OptunaSearcher(search, records, waiting)
    else:
        planned = [{"index": index, "values": search.planned(index)} for index in waiting]
        space = {"trial": tune.grid_search(planned)}
    sessions = folder.resolve() / "ray"
    tune.Tuner(
        tune.with_resources(trainable, lambda given: _placement(search, given)),
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_scheduler(search, records),
            num_samples=1 if searcher is None else len(waiting),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{trial.config['trial']['index']:03d}",
        ),
        run_config=tune.RunConfig(
            name=f"session-{len(list(sessions.glob('session-*'))) + 1}",
            storage_path=str(sessions),
            verbose=0,
            callbacks=callbacks,
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
        ),
    ).fit()


def _placement(search: Search, given: dict[str, Any]) -> tune.PlacementGroupFactory:
    """Return a trial's placement group: the learner's bundle and one for each worker."""
    return tune.PlacementGroupFactory(bundles(search.config(given["trial"]["values"])))


def _scheduler(search: Search, records: Records) -> Any:
    from tuning.schedulers import ASHAByStepCount, Population

    if search.scheduler == "asha":
        return ASHAByStepCount(search, records)
    if search.scheduler == "pbt":
        training = search.config({}).training
        return Population(search, total=training.num_iterations, every=training.eval_every)
    return None
