"""The command line: a thin parser. Each command imports what it needs when it runs."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sft_rl import __version__
from sft_rl.errors import UserError, check_neighbours, first_line, home_expanded
from sft_rl.jobs.streams import imports_left_at_once, lasting_streams

Subparsers = Any
"""What ``ArgumentParser.add_subparsers`` returns; argparse keeps its type to itself."""

OUT_OF_MEMORY = re.compile("out of memory|not enough memory|allocate memory", re.IGNORECASE)
"""What torch's errors say then, which have no type of their own on the CPU."""
EPILOG = """examples:
  sft-rl train swiss_roll                        the main job
  sft-rl train swiss_roll sampler.num_steps=4    fewer steps
  sft-rl train swiss_roll data.path=points.npy   your own points
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command; return its exit code.

    0 done, 1 the run failed, 2 wrong input, 130 interrupted, 143 preempted, or its own.
    """
    started = time.perf_counter()
    try:
        with lasting_streams(), imports_left_at_once():
            return _told(argv, started)
    except OSError as error:  # of the streams themselves
        with suppress(OSError):
            os.write(2, f"sft-rl: cannot write output: {error.strerror}\n".encode())
        return 1


def _told(argv: list[str] | None, started: float) -> int:
    """Run a command; what goes wrong is one line on stderr."""
    try:
        check_neighbours()
        args = _parse(argv)
        code: int | None = args.run(args, started)
    except UserError as error:
        line, failed = str(error), error.exit_code
    except KeyboardInterrupt as interrupt:
        line, failed = str(interrupt) or "interrupted", 130
    except MemoryError as error:
        line, failed = f"there is not enough memory: {first_line(error)}", 1
    except OSError as error:  # of a file that no room has words for
        line, failed = f"{error.filename or 'system'}: {error.strerror or first_line(error)}", 1
    except RuntimeError as error:
        if not OUT_OF_MEMORY.search(str(error)):
            raise
        line, failed = f"there is not enough memory: {first_line(error)}", 1
    else:
        return code or 0
    sys.stderr.write(f"sft-rl: {line}\n")
    return failed


def _parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse a command line; folders of ``~`` are this user's."""
    args = parse(sys.argv[1:] if argv is None else argv)
    for name, value in vars(args).items():
        if isinstance(value, Path):
            setattr(args, name, home_expanded(value))
    return args


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line as it stands; settings may stand anywhere behind the preset."""
    parser, words = _parser(), list(argv)
    for place, word in enumerate(words[1:], start=1):
        if words[0] == "train" and words[place - 1] == "--resume" and "=" in word:
            words[place - 1] = "--resume=always"  # what follows is a setting, not its value
    for word in words:
        if not word or (word.startswith("--") and word.endswith("=")):
            parser.error(f"argument {word!r} is empty; is a variable of the shell unset?")
    args, rest = parser.parse_known_args(words)
    # argparse ends a list of positional arguments at the first option behind it.
    if rest and (not hasattr(args, "settings") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.settings += rest
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sft-rl",
        description="Turn pretrained diffusion models into few-step samplers, by policy gradient.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sft-rl {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    presets = commands.add_parser("presets", help="list presets, or all settings of one")
    presets.add_argument("preset", nargs="?", help="show this preset's settings")
    presets.set_defaults(run=_presets)

    pretrain = commands.add_parser("pretrain", help="train the full-step model and cache it")
    _add_settings(pretrain)
    pretrain.set_defaults(run=_pretrain)

    _add_train(commands)

    evaluate = commands.add_parser("evaluate", help="measure the sampler of a run again")
    evaluate.add_argument("folder", type=_place, metavar="RUN")
    evaluate.set_defaults(run=_evaluate)

    sample = commands.add_parser("sample", help="draw samples from a run's sampler")
    sample.add_argument("folder", type=_place, metavar="RUN")
    sample.add_argument("--num", type=int, required=True, help="how many")
    sample.add_argument(
        "--out", type=Path, required=True, help="file: .npy, or .csv of points, .png of images"
    )
    sample.add_argument(
        "--label", type=_label, help="their class, or one of the run's prompts, if it has any"
    )
    sample.add_argument(
        "--condition",
        type=_condition,
        metavar="NUMBERS|FILE",
        help="what they are conditional on, if the model is: the columns' numbers, with commas "
        "between, or a table with a row for each",
    )
    sample.add_argument("--seed", type=int, default=0, help="seed of the samples")
    sample.set_defaults(run=_sample)

    export = commands.add_parser("export", help="write a run's sampler as a pipeline or program")
    export.add_argument("folder", type=Path, metavar="RUN")
    export.add_argument("--out", type=Path, required=True, help="folder to write")
    export.add_argument(
        "--no-code",
        action="store_true",
        help="leave the scheduler's code out: loading then needs this package",
    )
    export.add_argument(
        "--adapter",
        action="store_true",
        help="write the low-rank adapter alone, for peft or diffusers",
    )
    export.set_defaults(run=_export)

    cache = commands.add_parser("cache", help="say what the cache holds, or empty it")
    cache.add_argument("kinds", nargs="*", metavar="KIND", help="of what (default: everything)")
    cache.add_argument("--clear", action="store_true", help="remove what no process uses")
    cache.set_defaults(run=_cache)

    from cluster.cli import add_cluster_commands
    from tuning.cli import add_tune_command

    add_tune_command(commands, _place)
    add_cluster_commands(commands, parse=parse)
    return parser


def _add_train(commands: Subparsers) -> None:
    train = commands.add_parser("train", help="fine-tune a sampler to few steps")
    train.add_argument("preset", nargs="?", help="a name from `sft-rl presets`")
    train.add_argument("settings", nargs="*", metavar="key=value", help="settings to change")
    train.add_argument("--config", metavar="FILE", help="a config.yaml instead of a preset")
    train.add_argument(
        "--out", type=_place, help="run folder, a path or URL (default: a new one under runs/)"
    )
    train.add_argument(
        "--resume",
        nargs="?",
        const="always",
        choices=["always", "auto"],
        help="go on with the interrupted run in --out; auto: or start it, if there is none yet",
    )
    train.add_argument("--wandb", metavar="PROJECT", help="log to Weights & Biases, too")
    train.add_argument("--mlflow", metavar="URI", help="log to an MLflow server or folder, too")
    train.add_argument(
        "--dry-run", action="store_true", help="only say what the run will need, and stop"
    )
    train.set_defaults(run=_train)


def _place(text: str) -> Path | str:
    """A path, or a URL as it is."""
    if "://" not in text:
        return Path(text)
    from sft_rl.storage.urls import why_lost

    if lost := why_lost(text):
        raise argparse.ArgumentTypeError(f"got {text}; {lost}")
    return text


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", help="a name from `sft-rl presets`")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings to change")


def _presets(args: argparse.Namespace, started: float) -> None:
    from sft_rl.config.files import dump_config, load_config, preset_names

    if args.preset:
        sys.stdout.write(dump_config(load_config(args.preset)))
        return
    for name in preset_names():
        sys.stdout.write(f"{name:20} {load_config(name).description}\n")


def _pretrain(args: argparse.Namespace, started: float) -> None:
    from sft_rl.config.files import load_config

    config = load_config(args.preset, args.settings)
    from sft_rl.jobs.commands import pretrain
    from sft_rl.jobs.console import ConsoleObserver

    with ConsoleObserver() as observer:
        rows = pretrain(config, observer=observer)
    observer.table(f"{config.preset}: full-step model", rows)


def _train(args: argparse.Namespace, started: float) -> None:
    from sft_rl.config.files import load_config_of

    config = load_config_of(args.preset, args.settings, args.config)
    from sft_rl.jobs.console import ConsoleObserver

    if args.dry_run:
        from sft_rl.jobs.dry_run import dry_run

        with ConsoleObserver() as observer:
            if config.data.is_images:
                observer.phase("images")
            rows = dry_run(config, progress=observer.progress, warn=observer.warn)
        observer.table(f"{config.preset}: what a run needs", rows)
        return
    from sft_rl.jobs.commands import train
    from sft_rl.jobs.trackers import Trackers

    with ConsoleObserver() as observer:
        run = train(
            config,
            args.out,
            observer=observer,
            started=started,
            resume=args.resume or "never",
            trackers=Trackers(args.wandb, args.mlflow),
        )
    if run.was_finished:
        sys.stdout.write(f"{run.store.place} is finished, nothing to do\n")
        return
    from sft_rl.jobs.report import final_table

    if run.summary["data"]:
        observer.table("data", run.summary["data"])
    seconds = run.summary["wall_seconds"]["total"]
    observer.table(f"{run.store.place}: {seconds:.1f} s", final_table(run.summary))


def _evaluate(args: argparse.Namespace, started: float) -> None:
    from sft_rl.jobs.commands import evaluate
    from sft_rl.jobs.console import ConsoleObserver

    with ConsoleObserver() as observer:
        rows = evaluate(args.folder, observer=observer)
    observer.table(f"{args.folder}", rows)


def _label(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdecimal() else text


def _condition(given: str) -> Path | list[float]:
    """Numbers with commas between, or a file."""
    try:
        return [float(number) for number in given.split(",")]
    except ValueError:
        return home_expanded(given, "--condition")


def _sample(args: argparse.Namespace, started: float) -> None:
    if args.num < 1:
        raise UserError(f"--num: must be at least 1, got {args.num}")
    from sft_rl.jobs.commands import write_samples

    write_samples(
        args.folder,
        num=args.num,
        out=args.out,
        seed=args.seed,
        label=args.label,
        condition=args.condition,
    )
    sys.stdout.write(f"{args.num} samples written to {args.out}\n")


def _export(args: argparse.Namespace, started: float) -> None:
    from sft_rl.export.pipeline import export

    export(args.folder, args.out, with_code=not args.no_code, adapter=args.adapter)
    sys.stdout.write(f"{'adapter' if args.adapter else 'sampler'} written to {args.out}\n")


def _cache(args: argparse.Namespace, started: float) -> None:
    from sft_rl.jobs.console import ConsoleObserver
    from sft_rl.storage.cache import cache_folder
    from sft_rl.storage.room import clear, contents

    if args.clear:
        removed, left = clear(args.kinds)
        sys.stdout.write(f"{removed} entries removed, {left} are in use\n")
    ConsoleObserver().table(str(cache_folder()), contents(args.kinds))
