"""Run a search, or what is left of one, on Ray Tune."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from ray import tune

from sft_rl.config.files import load_config
from sft_rl.distributed.nodes import check_shared, is_fixed, room
from sft_rl.distributed.placement import learner_bundle, this_machine
from sft_rl.distributed.session import RaySession
from sft_rl.jobs.console import ConsoleObserver
from sft_rl.jobs.dry_run import object_bytes
from sft_rl.storage.urls import LOCAL
from tuning.checks import check_room
from tuning.final import final_trials
from tuning.folder import SearchFolder
from tuning.ledger import Ledger
from tuning.limits import NO_LIMITS, Limits
from tuning.progress import SearchView
from tuning.records import Records
from tuning.search import Search
from tuning.suggestions import InTurn
from tuning.trainable import resources
from tuning.trial import Pretrained, resolve_base, run_trial, share_pretrained

MAX_FAILURES = 2
"""How often a trial that dies is started again."""


def run_search(
    search: Search,
    folder: SearchFolder,
    *,
    address: str | None,
    trackers: Callable[[], list[tune.Callback]],
    limits: Limits = NO_LIMITS,
) -> tuple[Search, Records, Records]:
    """Run the trials that are not finished, then those of the winners; failed ones run again.

    Nothing of Ray's own state is read back: the records and the runs' checkpoints are enough, so
    a search goes on after its driver was killed, and after its folder has moved.

    Args:
        search: The search, checked.
        folder: Its folder.
        address: Cluster to join; none starts a Ray on this machine.
        trackers: Makes Ray's callbacks that log elsewhere, too.
        limits: When no other configuration is begun, and how many trials run at once.

    Returns:
        The search, with as many configurations as have begun if a limit was reached; the records
        of its trials, and of those that trained the winners again.
    """
    records, finals = folder.records()
    waiting = [i for i in range(search.num_runs) if not _is_finished(records, i)]
    if not waiting and not _left(search, records, finals):
        return search, records, finals
    own = load_config(search.preset, search.settings).ray
    ray = own.model_copy(update={"address": address})
    base = resolve_base(search) if address is None else None
    objects = 0 if base is None else _num_at_once(search, limits) * object_bytes(base[0])
    with RaySession(ray, search.base.rollout, objects=objects) as session:
        if address is not None:  # joining is quick, and may fail
            session.wait()
        with ConsoleObserver() as observer:
            pretrained = share_pretrained(*(base or resolve_base(search)), observer)
        del base
        session.wait()
        trial = learner_bundle(search.base.learner)
        check_shared(str(records.folder.resolve()), trial, field="--out")
        if is_fixed():
            check_room(search, room())
        folder.save(search)  # from here on the folder holds a search
        fit = partial(_fit, search, folder, pretrained, max_concurrent=limits.max_concurrent)
        if waiting:
            trials = _trials(search, records, waiting, limits)
            scheduler, total = _scheduler(search, records), search.num_runs
            with SearchView(search, records, total, seeds=search.seeds) as view:
                fit(records, trials, [Ledger(records, view), *trackers()], scheduler)
            if isinstance(trials, InTurn) and trials.reached:
                print(f"{trials.reached}; no more trials are begun", flush=True)  # noqa: T201
                begun = {record.index // search.seeds for record in records.all()}
                search = search.with_trials(len(begun))
                folder.save(search)
        if left := _left(search, records, finals):
            total = len(final_trials(search, records, finals))
            seeds = search.final_seeds
            with SearchView(search, finals, total, seeds=seeds, what="final trial") as view:
                fit(finals, left, [Ledger(finals, view), *trackers()])
    return search, records, finals


def _num_at_once(search: Search, limits: Limits) -> int:
    """Trials whose objects are in the store of a Ray here: one, if they have no workers, or all."""
    return limits.at_once(search, this_machine()) if search.base.rollout.num_workers else 1


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


def _trials(
    search: Search, records: Records, waiting: list[int], limits: Limits
) -> InTurn | list[dict[str, Any]]:
    """Return who hands out the trials, or all of a population, which begin together."""
    if search.scheduler == "pbt":
        known = {i: records[i].values for i in waiting if i in records}  # changed on the way
        return [search.trial(i, known.get(i) or search.planned(i)) for i in waiting]
    if search.searcher == "optuna":
        from tuning.optuna_search import OptunaSearcher

        return OptunaSearcher(search, records, waiting, limits)
    return InTurn(search, records, waiting, limits)


def _fit(
    search: Search,
    folder: SearchFolder,
    pretrained: Pretrained,
    records: Records,
    trials: InTurn | list[dict[str, Any]],
    callbacks: list[tune.Callback],
    scheduler: Any = None,
    *,
    max_concurrent: int | None,
) -> None:
    searcher = trials if isinstance(trials, InTurn) else None
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # our table says what happened
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # with verbose=0 this is what silences Ray's
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths mean the driver's, as in `train`
    trainable = tune.with_parameters(
        run_trial, search=search, pretrained=pretrained, out=records.place
    )
    file_system, storage, sessions = folder.sessions()
    tune.Tuner(
        tune.with_resources(
            trainable, lambda given: resources(search.config(given["trial"]["values"]))
        ),
        param_space={"trial": tune.grid_search(trials)} if searcher is None else {},
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=1 if searcher is None else search.num_runs,
            max_concurrent_trials=max_concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{trial.config['trial']['index']:03d}",
        ),
        run_config=tune.RunConfig(
            name=f"session-{sessions + 1}",
            storage_path=storage,
            storage_filesystem=None if file_system is LOCAL else file_system,
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
