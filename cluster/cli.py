"""The command lines of this package: `submit`, `jobs`, `doctor` and `cluster render`.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from sft_rl.errors import home_expanded
from sft_rl.storage.secrets import holds_secret

Subparsers = Any
"""What ``ArgumentParser.add_subparsers`` returns; argparse keeps its type to itself."""

Run = Callable[[argparse.Namespace, float], int]
Parse = Callable[[Sequence[str]], argparse.Namespace]

EXIT_CODES = """exit codes:
  0    the job succeeded, or was submitted with --detach
  2    wrong input, found here or by the job; otherwise the job's own exit code
  3    no cluster, wrong token, or a version that does not fit: nothing was submitted
  4    the job could not run to its end: its environment failed, or its node was lost
  130  Ctrl-C, and the job goes on
  143  the job was stopped
"""


def add_cluster_commands(subparsers: Subparsers, *, parse: Parse) -> None:
    """Add the commands; the parsed arguments carry `run(args, started)`, the exit code's source.

    Args:
        subparsers: Those of ``sft-rl``.
        parse: Parses a whole command line, for the one that is submitted.
    """
    _add_submit(subparsers, parse)
    _add_jobs(subparsers)
    _add_doctor(subparsers)
    _add_render(subparsers, parse)


def run_render(args: argparse.Namespace, started: float) -> int:
    """Render a file as `cluster render` was told.

    Raises:
        UserError: the settings are wrong, or the file is there already or cannot be written.
    """
    from cluster.config import load_settings
    from cluster.render import render
    from cluster.submit import check_job
    from sft_rl.storage.files import new_file

    settings = load_settings(args.settings)
    text = render(settings, args.target)
    check_job(settings, args.target, args.parse)
    if args.out == "-":
        sys.stdout.write(text)
        return 0
    with new_file(home_expanded(args.out)) as file:
        file.write(text.encode())
    return 0


def _add_submit(subparsers: Subparsers, parse: Parse) -> None:
    submit = subparsers.add_parser(
        "submit",
        help="run a command on a Ray cluster",
        usage="sft-rl submit [options] -- train|tune|pretrain|evaluate ...",
        description="Run a command on a Ray cluster: the code and the data file travel with it.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_address(submit)
    follow = submit.add_mutually_exclusive_group()
    follow.add_argument("--follow", action="store_true", help="print the job's log (default)")
    follow.add_argument("--detach", action="store_true", help="return at once, print the job's ID")
    submit.add_argument(
        "--cpus",
        type=_amount,
        metavar="N",
        help="CPUs that are kept for the learner (default: 0, as for `ray job submit`)",
    )
    submit.add_argument(
        "--gpus",
        type=_amount,
        metavar="N",
        help="GPUs of the learner (default: 1 if a node has one)",
    )
    submit.add_argument(
        "--storage",
        default="~/sft-rl-runs",
        type=_storage,
        metavar="DIR|URL",
        help="folder on the cluster that gets the run folder, best one that all nodes share, or "
        "storage such as s3://bucket/runs (default: ~/sft-rl-runs)",
    )
    submit.add_argument(
        "--env",
        metavar="FILE",
        help="YAML with pip or uv packages and env_vars "
        "(default: all dependencies are on the cluster already)",
    )
    submit.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME",
        help="environment variable whose value the job gets, and nobody sees",
    )
    submit.add_argument(
        "--retries",
        type=int,
        default=0,
        metavar="N",
        help="send a `train` that could not run to its end again, to go on where it was",
    )
    submit.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="PATH",
        help="another file or folder that the job needs",
    )
    submit.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    submit.set_defaults(run=_later("cluster.submit", "run_submit"), parse=parse)


def _add_jobs(subparsers: Subparsers) -> None:
    jobs = subparsers.add_parser("jobs", help="list, watch, stop or bring back jobs")
    commands = jobs.add_subparsers(title="commands", metavar="COMMAND", required=True)
    helps = {
        "list": "all jobs of the cluster, the newest first",
        "logs": "what a job has printed",
        "stop": "stop a job",
        "fetch": "bring a job's run folder here",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        _add_address(command)
        if name != "list":
            command.add_argument("id", metavar="ID", help="as `submit` and `jobs list` print it")
        command.set_defaults(run=_later("cluster.jobs", f"run_{name}"))
    commands.choices["logs"].add_argument(
        "--follow", action="store_true", help="go on until the job ends, return its exit code"
    )
    commands.choices["fetch"].add_argument(
        "--to", type=Path, metavar="DIR", help="new folder (default: runs/ID)"
    )


def _add_doctor(subparsers: Subparsers) -> None:
    doctor = subparsers.add_parser(
        "doctor",
        help="check this machine, or a cluster",
        description="Check this machine, or a cluster, and say what to do about each finding. "
        "Exit code 1 if something would stop a job.",
    )
    _add_address(doctor)
    doctor.add_argument(
        "--storage",
        metavar="DIR|URL",
        help="where runs go, to write to and read back from (default: runs here, "
        "~/sft-rl-runs on a cluster)",
    )
    doctor.set_defaults(run=_later("cluster.doctor", "run_doctor"))


def _add_render(subparsers: Subparsers, parse: Parse) -> None:
    cluster = subparsers.add_parser("cluster", help="make the files that start a cluster")
    commands = cluster.add_subparsers(title="commands", metavar="COMMAND", required=True)
    render = commands.add_parser(
        "render",
        help="render a cluster file from a settings file",
        description="Render a cluster file from a settings file. No secret is ever written.",
    )
    render.add_argument("--settings", required=True, metavar="FILE", help="settings file (YAML)")
    render.add_argument(
        "--target",
        required=True,
        metavar="TARGET",
        help="ray-up, kuberay-cluster, kuberay-job, kuberay-storage, slurm or dockerfile",
    )
    render.add_argument(
        "--out", default="-", metavar="FILE", help="file to write, or - for standard output"
    )
    render.set_defaults(run=run_render, parse=parse)


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="URL",
        help="job server of the cluster, http://HOST:8265 (default: RAY_API_SERVER_ADDRESS, "
        "RAY_ADDRESS, or this machine)",
    )


def _later(module: str, function: str) -> Run:
    """Return a call of a function whose module is imported only then."""

    def run(args: argparse.Namespace, started: float) -> int:
        # Ray reads it once, when it is imported, and sends no token without it.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        code: int = getattr(import_module(module), function)(args, started)
        return code

    return run


def _amount(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1e6:
        raise ValueError
    return number


_amount.__name__ = "amount"


def _storage(text: str) -> str:
    if not text.startswith(("/", "~/")) and "://" not in text:
        raise argparse.ArgumentTypeError(f"got {text}; it must start with /, ~/ or be a URL")
    if "://" in text and (
        "@" in text or holds_secret(text)
    ):  # it is written to logs and to the job's description
        raise argparse.ArgumentTypeError("credentials belong in the nodes' environment, not here")
    if "://" in text:
        from sft_rl.storage.urls import why_lost

        if lost := why_lost(text):
            raise argparse.ArgumentTypeError(f"got {text}; {lost}")
    return text
