"""Run a search, or what is left of one, on Ray Tune."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from ray import tune

from sft_rl.config import RayConfig
from sft_rl.distributed.nodes import is_fixed, room
from sft_rl.distributed.placement import learner_bundle, worker_bundles
from sft_rl.distributed.session import RaySession
from sft_rl.jobs.console import ConsoleObserver
from tuning.ledger import Ledger
from tuning.progress import SearchView
from tuning.records import Records
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
        if address is not None:  # joining is quick, and may fail
            session.wait()
        with ConsoleObserver() as observer:
            pretrained = share_pretrained(search, observer)
        session.wait()
        if is_fixed():
            search.check_room(room())
        search.save(folder)  # from here on the folder holds a search
        with SearchView(search, records) as view:
            _fit(search, folder, records, waiting, pretrained, [Ledger(records, view), *trackers])
    return records


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
        planned = {index: search.planned(index) for index in waiting}
        begun = {index: records[index].values for index in waiting if index in records}
        values = planned | begun  # a population has changed them on the way
        trials = [{"index": index, "values": values[index]} for index in waiting]
        space = {"trial": tune.grid_search(trials)}
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
    config = search.config(given["trial"]["values"])
    bundles = [learner_bundle(config.learner), *worker_bundles(config.rollout)]
    amounts = [{"CPU": bundle.cpus, "GPU": bundle.gpus} for bundle in bundles]
    return tune.PlacementGroupFactory([{k: v for k, v in a.items() if v > 0} for a in amounts])


def _scheduler(search: Search, records: Records) -> Any:
    from tuning.schedulers import ASHAByStepCount, Population

    if search.scheduler == "asha":
        return ASHAByStepCount(search, records)
    if search.scheduler == "pbt":
        training = search.config({}).training
        return Population(search, total=training.num_iterations, every=training.eval_every)
    return None
