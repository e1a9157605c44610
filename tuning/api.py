"""Searches from Python: ``sft_rl.search``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sft_rl.config import Config, RayConfig
from sft_rl.config.files import load_config, load_config_file, lookup, named_overrides
from sft_rl.config.paths import PATHS, with_absolute_paths
from sft_rl.distributed.placement import this_machine
from sft_rl.distributed.session import (
    cluster_address,
    is_running,
    set_local_environment,
    use_own_token,
)
from sft_rl.errors import RunFailed, home_expanded
from sft_rl.storage.urls import is_url
from tuning.checks import check_room, check_search
from tuning.folder import SearchFolder
from tuning.limits import Limits
from tuning.search import Scheduler, Search, Searcher
from tuning.space import Space, load_space, parse_space

FINAL_SEEDS = 3


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes:
        best: For each number of steps the best configuration, by validation.
        results: One row a trial, with its validation and that of its configuration.
        final: One row for each trial of the winners and the preset's own, with every distance to
            held-out data; empty without final trials.
        report: The tables, as Markdown.
        folder: Path or URL where all of it, and the pictures, are.
    """

    best: dict[int, Config]
    results: pd.DataFrame
    final: pd.DataFrame
    report: str
    folder: Path | str


def search(
    preset: str,
    space: str | Mapping[str, Mapping[str, Any]],
    overrides: Iterable[str] | Mapping[str, Any] = (),
    *,
    num_trials: int,
    out: str | Path,
    seed: int | None = None,
    seeds: int = 1,
    final_seeds: int | None = None,
    searcher: Searcher = "random",
    scheduler: Scheduler = "none",
    address: str | None = None,
    resume: bool = False,
    metric: str = "auto",
    time_budget: float | None = None,
    patience: int | None = None,
    max_concurrent: int | None = None,
) -> Found:
    """Search settings, as ``sft-rl tune`` does, on a Ray that runs already or one of its own.

    Args:
        preset: The preset that trials start from.
        space: A ready space, a YAML file, what would stand in it, or distributions by dotted key,
            as ``{"policy.learning_rate": {"loguniform": [1e-5, 1e-3]}}``.
        overrides: Settings of every trial.
        num_trials: How many configurations are tried.
        out: Folder of the search, a path or URL.
        seed: Fixes the configurations, and is the first of the trials' seeds.
        seeds: Trials of each configuration, one a seed.
        final_seeds: Trials of each winner with seeds it has not seen; by default 3.
        searcher: ``random`` or ``optuna``.
        scheduler: ``none``, ``asha`` or ``pbt``.
        address: A cluster to join, where no Ray runs here.
        resume: Go on with this search if `out` holds it, with more configurations if `num_trials`
            is larger than its own.
        metric: What ranks, the less the better: a metric of the evaluations, ``module:function``
            of all of them, or ``auto`` for the distance that leads the preset's runs.
        time_budget: Seconds after which no configuration is begun.
        patience: Configurations in a row without a new best after which none is begun.
        max_concurrent: Trials at a time, at most.

    Raises:
        UserError: For anything that cannot work, before anything starts; or if every trial failed,
            or the search was interrupted.
    """
    folder = SearchFolder(out if is_url(out) else home_expanded(out, "out"))
    if not resume:
        folder.check_unused()
    wanted = new_search(
        preset,
        named_overrides(overrides, {}),
        load_space(space) if isinstance(space, str) else parse_space("space", _tree(space)),
        num_trials=num_trials,
        seed=seed,
        searcher=searcher,
        scheduler=scheduler,
        seeds=seeds,
        final_seeds=final_seeds,
        metric=metric,
    )
    if resume:
        wanted = folder.going_on(wanted)
    joined = cluster_address(RayConfig(address=address))
    limits = Limits(time_budget, patience, max_concurrent)
    check_search(wanted, joined)
    limits.check(wanted)
    make_ready(wanted, joined)
    return _found(wanted, folder, joined, limits)


def _tree(space: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a space as its file would say it."""
    if "space" in space:
        return dict(space)
    return {"space": {key: dict(kind) for key, kind in space.items()}}


def _found(wanted: Search, folder: SearchFolder, address: str | None, limits: Limits) -> Found:
    from tuning.report import write_report  # imports Ray, which has read its settings by then
    from tuning.runner import num_unfinished, run_search

    folder.begin()
    wanted, records, finals = run_search(
        wanted, folder, address=address, trackers=list, limits=limits
    )
    report = write_report(wanted, folder.path, records, finals)
    folder.publish()
    if unfinished := num_unfinished(wanted, records, finals):
        raise RunFailed(f"search: interrupted, {unfinished} trials are left; resume=True goes on")
    tried = records.all()
    if all(record.state == "failed" for record in tried):
        raise RunFailed(f"search: all {len(tried)} trials failed, the first: {tried[0].error}")
    best = {
        int(file.stem.removeprefix("best-T")): load_config_file(str(file))
        for file in folder.path.glob("best-T*.yaml")
    }
    final = folder.path / "final.csv"
    return Found(
        best=dict(sorted(best.items())),
        results=pd.read_csv(folder.path / "results.csv"),
        final=pd.read_csv(final) if final.exists() else pd.DataFrame(),
        report=report,
        folder=folder.path if folder.remote is None else folder.place,
    )


def new_search(
    preset: str,
    settings: Iterable[str],
    space: Space,
    *,
    num_trials: int,
    seed: int | None,
    searcher: Searcher,
    scheduler: Scheduler,
    seeds: int,
    final_seeds: int | None,
    metric: str = "auto",
) -> Search:
    """Build a search as people ask for it.

    Args:
        preset: The preset that trials start from.
        settings: ``key=value`` for every trial; a key of them is not searched.
        space: What is searched.
        num_trials: How many configurations are tried; a grid has no more than its points.
        seed: By default the settings' own.
        searcher: How configurations are chosen.
        scheduler: What happens to trials on the way.
        seeds: Trials of each configuration.
        final_seeds: Trials of each winner; by default 3, and none under ``pbt``.
        metric: What ranks.
    """
    own = list(settings)
    config = with_absolute_paths(load_config(preset, own))
    for key in PATHS:  # trials run elsewhere, and a search may be resumed elsewhere
        if (path := lookup(config, key)) is not None:
            own.append(f"{key}={json.dumps(path)}")
    keys = [setting.partition("=")[0] for setting in own]
    space = space.without({key: lookup(config, key) for key in keys})
    if final_seeds is None:
        final_seeds = 0 if scheduler == "pbt" else FINAL_SEEDS
    search = Search(
        preset=preset,
        settings=tuple(own),
        space=space,
        num_trials=num_trials,
        seed=config.seed if seed is None else seed,
        searcher=searcher,
        scheduler=scheduler,
        seeds=seeds,
        final_seeds=final_seeds,
        metric=metric,
    )
    return search.with_trials(num_trials)


def make_ready(search: Search, address: str | None) -> None:
    """Set what Ray reads when it is first imported; refuse trials that this machine cannot hold."""
    if address is not None:
        use_own_token()
    elif not is_running():
        check_room(search, this_machine())
        set_local_environment()
