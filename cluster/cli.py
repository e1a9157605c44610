"""`sft-rl cluster`: the command line of this package."""

import argparse
import sys
from pathlib import Path

from cluster.config import load_settings
from cluster.render import TARGETS, render
from sft_rl.errors import UserError


def add_cluster_commands(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `cluster render`; the parsed arguments carry `run`, which returns the exit code."""
    cluster = subparsers.add_parser("cluster", help="make the files that start a cluster")
    commands = cluster.add_subparsers(title="commands", metavar="COMMAND", required=True)
    command = commands.add_parser(
        "render",
        help="render a cluster file from a settings file",
        description="Render a cluster file from a settings file. No secret is ever written.",
    )
    command.add_argument("--settings", required=True, metavar="FILE", help="settings file (YAML)")
    command.add_argument("--target", required=True, choices=TARGETS, help="what to render")
    command.add_argument(
        "--out", default="-", metavar="FILE", help="file to write, or - for standard output"
    )
    command.set_defaults(run=run_render)


def run_render(args: argparse.Namespace) -> int:
    """Render a file as `cluster render` was told.

    Raises:
        UserError: the settings are wrong or the file cannot be written.
    """
    text = render(load_settings(args.settings), args.target)
    if args.out == "-":
        sys.stdout.write(text)
        return 0
    try:
        Path(args.out).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {args.out}: cannot be written: {error.strerror}") from None
    return 0
