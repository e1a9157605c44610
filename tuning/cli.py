"""The command line of this package: `sft-rl tune`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_rl.errors import UserError

if TYPE_CHECKING:
    from sft_rl.distributed.placement import Needs
    from tuning.folder import SearchFolder
    from tuning.limits import Limits
    from tuning.records import Records
    from tuning.search import Search

Subparsers = Any
"""What ``ArgumentParser.add_subparsers`` returns; argparse keeps its type to itself."""

AUTO = "auto"
"""Of `--resume`: as the same command does that is given again."""

EPILOG = """examples:
  sft-rl tune swiss_roll --search lr_steps --num-trials 16 --seeds 3 --out runs/search
  sft-rl tune swiss_roll sampler.num_steps=4 --search space.yaml --num-trials 8 --out runs/four
  sft-rl tune --resume runs/search
  sft-rl tune --resume runs/search --num-trials 32 --time-budget 2h

A key that is set on the command line is not searched.
"""


def add_tune_command(subparsers: Subparsers, place: Callable[[str], Path | str]) -> None:
    """Add `tune`; the parsed arguments carry `run(args, started)`.

    Args:
        subparsers: Takes the command.
        place: Reads a path or URL.
    """
    tune = subparsers.add_parser(
        "tune",
        help="search settings: how few steps can be afforded, and how",
        description="Search settings with Ray Tune; every trial is the real job.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tune.add_argument("preset", nargs="?", help="a name from `sft-rl presets`")
    tune.add_argument("settings", nargs="*", metavar="key=value", help="settings of every trial")
    tune.add_argument("--search", metavar="NAME|FILE", help="ready search space, or a YAML file")
    tune.add_argument("--num-trials", type=int, metavar="N", help="how many configurations to try")
    tune.add_argument("--out", type=place, metavar="DIR", help="folder of the new search, or a URL")
    tune.add_argument("--seed", type=int, help="seed of the search, and the first of its trials")
    tune.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="trials of each configuration, one a seed; their mean ranks it (default: 1)",
    )
    tune.add_argument(
        "--final-seeds",
        type=int,
        metavar="N",
        help="train winners and the preset's own again with N new seeds, and measure them on "
        "held-out data; 0 for not (default: 3, under pbt 0)",
    )
    tune.add_argument(
        "--searcher",
        choices=("random", "optuna"),
        help="random draws, and the grid in turn (default), or Optuna's TPE",
    )
    tune.add_argument(
        "--scheduler",
        choices=("none", "asha", "pbt"),
        help="stop weak trials early (asha), or population-based training of learning rates (pbt)",
    )
    tune.add_argument(
        "--metric",
        metavar="NAME|module:function",
        help="what ranks, the less the better: a metric of the evaluations, or a function of them "
        "all (default: the distance that leads the preset's runs)",
    )
    tune.add_argument(
        "--time-budget", metavar="TIME", help="begin no configuration after 90m, 2h …"
    )
    tune.add_argument(
        "--patience",
        type=int,
        metavar="N",
        help="begin none after N in a row that were no new best of their number of steps",
    )
    tune.add_argument("--max-concurrent", type=int, metavar="N", help="trials at a time, at most")
    tune.add_argument("--address", metavar="URL", help="Ray cluster to run on (default: start one)")
    tune.add_argument(
        "--resume",
        type=lambda text: text if text == AUTO else place(text),
        metavar="DIR",
        help="go on with a search; with --num-trials, add configurations to it; `auto` begins the "
        "search in --out, or goes on with it",
    )
    tune.add_argument("--wandb", metavar="PROJECT", help="log trials to Weights & Biases, too")
    tune.add_argument("--mlflow", metavar="URI", help="log trials to an MLflow server or folder")
    tune.set_defaults(run=run_tune, needs=needs)


def needs(args: argparse.Namespace) -> Needs:
    """Check a new search as its job on a cluster will; say what must be there.

    Raises:
        UserError: If anything asked for cannot work.
    """
    from sft_rl.config.files import load_config
    from sft_rl.config.paths import local_files
    from sft_rl.distributed.placement import Needs
    from sft_rl.storage.urls import is_url
    from tuning.checks import check_room, check_search
    from tuning.folder import SearchFolder
    from tuning.space import space_names

    _check_complete(args)
    search, limits = _new(args), _limits(args)
    if not is_url(args.out):  # which perhaps only the cluster reaches
        search = _in_folder(search, SearchFolder(args.out), args)
    check_search(search, "auto")
    limits.check(search)
    files = local_files(load_config(args.preset, args.settings))
    if args.search not in space_names() and not Path(args.search).is_absolute():
        files = (*files, args.search)
    return Needs(files, check_trials=partial(check_room, search))


def run_tune(args: argparse.Namespace, started: float) -> int:
    """Run `sft-rl tune`; return 0, 1 if every trial failed, or 130 if it was interrupted.

    Raises:
        UserError: If anything asked for cannot work; nothing has been started then.
    """
    from sft_rl.config import RayConfig
    from sft_rl.distributed.session import cluster_address
    from sft_rl.jobs.trackers import Trackers
    from tuning.checks import check_search
    from tuning.folder import SearchFolder

    address = cluster_address(RayConfig(address=args.address))
    if args.resume in (None, AUTO):
        _check_complete(args)
        folder = SearchFolder(args.out)
        search = _in_folder(_new(args), folder, args)
    else:
        folder = SearchFolder(args.resume)
        search = _resumed(args, folder)
    limits = _limits(args)
    check_search(search, address)
    limits.check(search)
    if args.num_trials is not None and search.num_trials < args.num_trials:
        sys.stdout.write(f"--num-trials: the grid has {search.num_trials} points, each runs once\n")
    from tuning.api import make_ready

    make_ready(search, address)
    services = Trackers(args.wandb, args.mlflow)
    from tuning.runner import run_search
    from tuning.trackers import callbacks

    log_to = partial(callbacks, folder.name, services)
    folder.begin()
    search, records, finals = run_search(
        search, folder, address=address, trackers=log_to, limits=limits
    )
    return conclude(search, folder, records, finals)


def conclude(search: Search, folder: SearchFolder, records: Records, finals: Records) -> int:
    """Report, and return the command's exit code.

    Args:
        search: The search.
        folder: Its folder.
        records: Its trials.
        finals: Those of the winners.
    """
    from tuning.report import write_report
    from tuning.runner import num_unfinished

    text = write_report(search, folder.path, records, finals)
    folder.publish()
    sys.stdout.write(f"{text}\nreport: {folder.place}/report.md\n")
    if unfinished := num_unfinished(search, records, finals):
        sys.stderr.write(
            f"sft-rl: interrupted, {unfinished} trials are not finished; "
            f"go on with: sft-rl tune --resume {shlex.quote(folder.place)}\n"
        )
        return 130
    for trials in (records.all(), finals.all()):
        if trials and all(record.state == "failed" for record in trials):
            sys.stderr.write(
                f"sft-rl: all {len(trials)} trials failed, the first: {trials[0].error}\n"
            )
            return 1
    return 0


def _check_complete(args: argparse.Namespace) -> None:
    for name, value in (
        ("PRESET", args.preset),
        ("--search", args.search),
        ("--num-trials", args.num_trials),
        ("--out", args.out),
    ):
        if value is None:
            raise UserError(
                f"{name}: is missing; a new search needs PRESET, --search, --num-trials and --out"
            )


def _new(args: argparse.Namespace) -> Search:
    from tuning.api import new_search
    from tuning.space import load_space

    return new_search(
        args.preset,
        args.settings,
        load_space(args.search),
        num_trials=args.num_trials,
        seed=args.seed,
        searcher=args.searcher or "random",
        scheduler=args.scheduler or "none",
        seeds=1 if args.seeds is None else args.seeds,
        final_seeds=args.final_seeds,
        metric=args.metric or "auto",
    )


def _in_folder(search: Search, folder: SearchFolder, args: argparse.Namespace) -> Search:
    """A new search in its folder, or with `--resume auto` what is there of it."""
    if args.resume == AUTO:
        return folder.going_on(search)
    folder.check_unused()
    return search


def _limits(args: argparse.Namespace) -> Limits:
    from tuning.limits import Limits, seconds

    budget = None if args.time_budget is None else seconds(args.time_budget)
    return Limits(budget, args.patience, args.max_concurrent)


def _resumed(args: argparse.Namespace, folder: SearchFolder) -> Search:
    names = ("search", "out", "seed", "seeds", "final_seeds", "searcher", "scheduler", "metric")
    given = [name for name in ("preset", *names) if getattr(args, name) is not None]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise UserError(
            "--resume: takes everything from the folder's search.yaml; give no preset, "
            f"settings, {options} with it"
        )
    search = folder.load()
    if args.num_trials is None:
        return search
    more = search.with_trials(args.num_trials)
    if search.scheduler == "pbt" or more.num_trials <= search.num_trials:
        why = "a population is trained as a whole" if search.scheduler == "pbt" else "give more"
        raise UserError(
            f"--num-trials: the search has {search.num_trials} configurations already; {why}"
        )
    return more
