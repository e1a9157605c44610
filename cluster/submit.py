"""`sft-rl submit`: the same command, on a cluster."""

from __future__ import annotations

import argparse
import secrets
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import sft_rl
from cluster.capacity import Bundle, check_capacity
from cluster.config import check_strings
from cluster.connection import Client, alive_nodes, connect, explained, is_fixed
from cluster.follow import follow
from cluster.package import stage
from sft_rl.config import RolloutConfig
from sft_rl.errors import UserError, did_you_mean

COMMANDS = ("train", "tune", "pretrain", "evaluate")
OUT_KEY = "sft_rl_out"
"""Metadata under which a job tells where its run folder is."""


@dataclass(frozen=True)
class JobCommand:
    """A command that is ready to run on the cluster.

    Attributes:
        arguments: What follows ``sft-rl``, without ``--out``.
        out: The run folder on the cluster, if the command makes one.
        files: Local files that it reads, relative to the current directory.
        rollout: Its workers, as far as they are known before it runs.
    """

    arguments: tuple[str, ...]
    out: str | None
    files: tuple[str, ...]
    rollout: RolloutConfig | None

    @property
    def entrypoint(self) -> str:
        """The shell line that runs it; a leading ``~`` is the cluster's home folder."""
        out = () if self.out is None else ("--out", self.out)
        words = ("python", "-m", "sft_rl", *self.arguments, *out)
        return " ".join(quote(word) for word in words)


def run_submit(args: argparse.Namespace, started: float) -> int:
    """Package the project, submit the command, and follow it unless told otherwise.

    Raises:
        UserError: Something is wrong; nothing was submitted then.
    """
    words = args.command[args.command[:1] == ["--"] :]
    job_id = f"{words[0] if words else 'job'}-{secrets.token_hex(4)}"
    command = job_command(words, args.parsers, out=f"{args.storage.rstrip('/')}/{job_id}")
    environment = runtime_environment(args.env)
    client = connect(args.address)
    learner = _check_room(client, args, command.rollout)
    with tempfile.TemporaryDirectory(prefix="sft-rl-") as folder:
        stage(Path(folder), [*command.files, *args.include])
        with explained(client.get_address()):
            client.submit_job(
                entrypoint=command.entrypoint,
                submission_id=job_id,
                runtime_env={**environment, "working_dir": folder},
                metadata={"sft_rl": sft_rl.__version__, OUT_KEY: command.out or ""},
                entrypoint_num_cpus=learner.cpus,
                entrypoint_num_gpus=learner.gpus,
            )
    sys.stderr.write(f"submitted {job_id}\n")
    if args.detach:
        sys.stdout.write(f"{job_id}\n")
        return 0
    return follow(client, job_id)


def job_command(
    words: Sequence[str], parsers: Mapping[str, argparse.ArgumentParser], *, out: str
) -> JobCommand:
    """Check a command with the parser and the configuration that the cluster will use.

    Args:
        words: The command, without ``sft-rl``.
        parsers: The parser of each command.
        out: The run folder, unless the command names one.

    Raises:
        UserError: The command is wrong, or names a folder that only this machine has.
    """
    if not words or words[0] not in COMMANDS:
        given = words[0] if words else "nothing"
        raise UserError(f"submit: got {given!r} after --; {did_you_mean(given, COMMANDS)}")
    if words[0] not in parsers:
        raise UserError(f"submit: this version has no command {words[0]!r}")
    check_strings(words)
    args = parsers[words[0]].parse_args(words[1:])
    if "folder" in args:
        _check_absolute("RUN", str(args.folder))
    own_out = getattr(args, "out", None)
    if own_out is not None:
        _check_absolute("--out", str(own_out))
        words = _without_out(words)
    files: tuple[str, ...] = ()
    rollout = None
    if "preset" in args and words[0] != "tune":
        from sft_rl.presets import load_config

        config = load_config(args.preset, args.settings)
        rollout = config.rollout if words[0] == "train" else None
        path = config.data.path
        files = (path,) if path is not None and not Path(path).is_absolute() else ()
    makes_folder = "out" in args
    return JobCommand(tuple(words), str(own_out or out) if makes_folder else None, files, rollout)


def runtime_environment(file: str | None) -> dict[str, Any]:
    """Read ``--env``: packages to install (`pip` or `uv`) and environment variables.

    Raises:
        UserError: It cannot be read, has other keys, or holds something like a token.
    """
    if file is None:
        return {}
    import yaml

    try:
        raw = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--env: cannot read {file}: {str(error).splitlines()[0]}") from None
    if not isinstance(raw, dict):
        raise UserError(f"--env: {file} holds {type(raw).__name__}, expected keys and values")
    for key in raw:
        if key not in ("pip", "uv", "env_vars"):
            hint = did_you_mean(str(key), ("pip", "uv", "env_vars"))
            raise UserError(f"--env: {file}: {key}: unknown key; {hint}")
    check_strings(raw)
    if any(str(name).startswith("RAY_AUTH") for name in raw.get("env_vars") or ()):
        raise UserError(f"--env: {file}: env_vars: RAY_AUTH… is the nodes' own; leave it out")
    from ray.runtime_env import RuntimeEnv

    try:
        RuntimeEnv(**raw)
    except (TypeError, ValueError) as error:
        raise UserError(f"--env: {file}: {str(error).splitlines()[0]}") from None
    return dict(raw)


def _check_room(client: Client, args: argparse.Namespace, rollout: RolloutConfig | None) -> Bundle:
    """Return what the learner asks for: a GPU where there is one, unless told otherwise."""
    nodes = {
        f"{node['node_ip']} ({node['node_id'][:6]})": Bundle(
            node["resources_total"].get("CPU", 0.0), node["resources_total"].get("GPU", 0.0)
        )
        for node in alive_nodes(client)
    }
    gpus = args.gpus
    if gpus is None:
        gpus = 1.0 if any(node.gpus >= 1 for node in nodes.values()) else 0.0
    learner = Bundle(args.cpus, gpus)
    if is_fixed(client):
        check_capacity(nodes, learner, rollout)
    return learner


def quote(word: str) -> str:
    """Quote a word for the cluster's shell, which still expands a leading ``~/``."""
    return f"~/{shlex.quote(word[2:])}" if word.startswith("~/") else shlex.quote(word)


def _check_absolute(field: str, path: str) -> None:
    if not PurePosixPath(path).is_absolute() and not path.startswith("~/"):
        raise UserError(
            f"{field}: got {path}; on the cluster it must be an absolute path or start with ~/, "
            "on storage that outlives the job"
        )


def _without_out(words: Sequence[str]) -> list[str]:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--out")
    return parser.parse_known_args(words)[1]
