"""Run a search, or what is left of one, on Ray Tune."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune

from sft_rl.config import RayConfig
from sft_rl.distributed.nodes import check_shared, is_fixed, room
from sft_rl.distributed.placement import learner_bundle
from sft_rl.distributed.session import RaySession
from sft_rl.jobs.console import ConsoleObserver
from tuning.final import final_trials
from tuning.ledger import Ledger
from tuning.progress import SearchView
from tuning.records import Records
from tuning.search import Search
from tuning.trial import Pretrained, resources, run_trial, share_pretrained

MAX_FAILURES = 2
"""How often a trial that dies is started again."""


def run_search(
    search: Search,
    folder: Path,
    *,
    address: str | None,
    trackers: Callable[[], list[tune.Callback]],
) -> tuple[Records, Records]:
    """Run the trials that are not finished, then those of the winners; failed ones run again.

    Nothing of Ray's own state is read back: the records and the runs' checkpoints are enough, so
    a search goes on after its driver was killed, and after its folder has moved.

    Args:
        search: The search, checked.
        folder: Its folder.
        address: Cluster to join; none starts a Ray on this machine.
        trackers: Makes Ray's callbacks that log elsewhere, too.

    Returns:
        The records of all trials, and of those that trained the winners again.
    """
    records, finals = records_of(folder)
    waiting = [i for i in range(search.num_runs) if not _is_finished(records, i)]
    if not waiting and not _left(search, records, finals):
        return records, finals
    with RaySession(RayConfig(address=address), search.base.rollout) as session:
        if address is not None:  # joining is quick, and may fail
            session.wait()
        with ConsoleObserver() as observer:
            pretrained = share_pretrained(search, observer)
        session.wait()
        trial = learner_bundle(search.base.learner)
        check_shared(str(records.folder.resolve()), trial, field="--out")
        if is_fixed():
            search.check_room(room())
        search.save(folder)  # from here on the folder holds a search
        fit = partial(_fit, search, folder, pretrained)
        if waiting:
            searcher, trials = _searched(search, records, waiting)
            scheduler, total = _scheduler(search, records), search.num_runs
            with SearchView(search, records, total, seeds=search.seeds) as view:
                callbacks = [Ledger(records, view), *trackers()]
                fit(records, trials, callbacks, searcher, scheduler)
        if left := _left(search, records, finals):
            total = len(final_trials(search, records, finals))
            seeds = search.final_seeds
            with SearchView(search, finals, total, seeds=seeds, what="final trial") as view:
                fit(finals, left, [Ledger(finals, view), *trackers()])
    return records, finals


def records_of(folder: Path) -> tuple[Records, Records]:
    """Read what a search's folder knows: of its trials, and of those of the winners."""
    return Records(folder / "trials"), Records(folder / "final")


def num_unfinished(search: Search, records: Records, finals: Records) -> int:
    """Return how many trials have not come to an end."""
    if left := search.num_runs - sum(record.is_over for record in records.all()):
        return left
    trials = [trial["index"] for trial in final_trials(search, records, finals)]
    return sum(index not in finals or not finals[index].is_over for index in trials)


def _is_finished(records: Records, index: int) -> bool:
    return index in records and records[index].state in ("done", "stopped")


def _left(search: Search, records: Records, finals: Records) -> list[dict[str, Any]]:
    """What is left to train again; nothing before the search is over."""
    trials = final_trials(search, records, finals)
    return [trial for trial in trials if not _is_finished(finals, trial["index"])]


def _searched(
    search: Search, records: Records, waiting: list[int]
) -> tuple[Any, list[dict[str, Any]]]:
    """Return who suggests the trials, or the trials themselves."""
    if search.searcher == "optuna":
        from tuning.optuna_search import OptunaSearcher

        return OptunaSearcher(search, records, waiting), [{} for _ in waiting]
    values = {index: search.planned(index // search.seeds) for index in waiting}
    # A population has changed them on the way.
    values |= {index: records[index].values for index in waiting if index in records}
    return None, [search.trial(index, values[index]) for index in waiting]


def _fit(
    search: Search,
    folder: Path,
    pretrained: Pretrained,
    records: Records,
    trials: list[dict[str, Any]],
    callbacks: list[tune.Callback],
    searcher: Any = None,
    scheduler: Any = None,
) -> None:
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # our table says what happened
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # with verbose=0 this is what silences Ray's
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths mean the driver's, as in `train`
    trainable = tune.with_parameters(
        run_trial, search=search, pretrained=pretrained, out=str(records.folder.resolve())
    )
    sessions = folder.resolve() / "ray"
    tune.Tuner(
        tune.with_resources(
            trainable, lambda given: resources(search.config(given["trial"]["values"]))
        ),
        param_space={} if searcher else {"trial": tune.grid_search(trials)},
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=len(trials) if searcher else 1,
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


def _scheduler(search: Search, records: Records) -> Any:
    from tuning.schedulers import ASHAByStepCount, Population

    if search.scheduler == "asha":
        return ASHAByStepCount(search, records)
    if search.scheduler == "pbt":
        training = search.base.training
        return Population(search, total=training.num_iterations, every=training.eval_every)
    return None
