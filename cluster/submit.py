"""`sft-rl submit`: the same command, on a cluster."""

from __future__ import annotations

import argparse
import re
import secrets
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from cluster.config import ClusterSettings, check_strings, read_mapping
from cluster.connection import Client, alive_nodes, connect, explained, is_fixed
from cluster.follow import NOT_STARTED, follow
from cluster.helper import quote
from cluster.package import stage
from cluster.secrets import hand_over, values_of, withdraw
from sft_rl.distributed.placement import NOTHING, Bundle, Needs, check_room
from sft_rl.errors import UserError, did_you_mean
from sft_rl.storage.secrets import NAMES
from sft_rl.storage.urls import is_url

Parse = Callable[[Sequence[str]], argparse.Namespace]
"""Parses a command line, without ``sft-rl``."""
COMMANDS = ("train", "tune", "pretrain", "evaluate")
RESUMABLE = ("train", "tune")
"""Those that go on where they were: with `--resume=auto`."""
OUT_KEY = "sft_rl_out"
"""Metadata under which a job tells where its run folder is."""
COMMAND_KEY = "sft_rl_command"
"""Metadata under which it tells what was asked for."""


@dataclass(frozen=True)
class JobCommand:
    """A command that is ready to run on the cluster.

    Attributes:
        words: What follows ``sft-rl``.
        out: The run folder on the cluster, a path or a URL, if the command makes one.
        needs: Files and room.
        runner: Module that runs the words, and its own.
    """

    words: tuple[str, ...]
    out: str | None
    needs: Needs
    runner: tuple[str, ...] = ("sft_rl",)

    @property
    def entrypoint(self) -> str:
        """The shell line that runs it; a leading ``~`` is the cluster's home folder."""
        return " ".join(quote(word) for word in ("python", "-m", *self.runner, *self.words))


def run_submit(args: argparse.Namespace, started: float) -> int:
    """Package the project, submit the command, and follow it unless told otherwise.

    Raises:
        UserError: Something is wrong; nothing was submitted then.
    """
    words = args.command[args.command[:1] == ["--"] :]
    job_id = f"{words[0] if words else 'job'}-{secrets.token_hex(4)}"
    command = job_command(words, args.parse, out=f"{args.storage.rstrip('/')}/{job_id}")
    if args.retries:
        command = _going_on(command, args)
    environment = runtime_environment(args.env)
    values = values_of(args.secret, environment.get("env_vars", {}))
    if values:
        variables = {**environment.get("env_vars", {}), NAMES: ",".join(values)}
        environment["env_vars"] = variables
    client = connect(args.address)
    driver = _placed(client, args, command.needs)
    for attempt in range(args.retries + 1):
        one = f"{job_id}-{attempt + 1}" if attempt else job_id
        key = hand_over(client, values)
        job = replace(command, runner=("cluster.secrets", key)) if values else command
        try:
            _send(client, one, job, environment, driver, args.include)
        except BaseException:
            withdraw(client, key)
            raise
        sys.stderr.write(f"submitted {one}\n")
        if args.detach:
            sys.stdout.write(f"{one}\n")
            return 0
        code = follow(client, one)
        if code != NOT_STARTED:
            return code
        withdraw(client, key)
    return code


def _going_on(command: JobCommand, args: argparse.Namespace) -> JobCommand:
    """The same command, which goes on with its run if there is one."""
    words = command.words
    if words[0] not in RESUMABLE or args.detach or args.retries < 0:
        raise UserError(
            f"--retries: got {args.retries}; a followed `train` or `tune` can be sent again, not "
            f"{'with --detach' if args.detach else words[0]}"
        )
    return command if "--resume" in words else replace(command, words=(*words, "--resume=auto"))


def _send(
    client: Client,
    job_id: str,
    command: JobCommand,
    environment: dict[str, Any],
    driver: Bundle,
    include: Sequence[str],
) -> None:
    """Package what the job needs, and submit it."""
    with tempfile.TemporaryDirectory(prefix="sft-rl-") as folder:
        stage(Path(folder), [*command.needs.files, *include])
        with explained(client.get_address()):
            client.submit_job(
                entrypoint=command.entrypoint,
                submission_id=job_id,
                runtime_env={**environment, "working_dir": folder},
                metadata={OUT_KEY: command.out or "", COMMAND_KEY: shlex.join(command.words)},
                entrypoint_num_cpus=driver.cpus,
                entrypoint_num_gpus=driver.gpus,
            )


def job_command(words: Sequence[str], parse: Parse, *, out: str) -> JobCommand:
    """Check a command with the parser and the configuration that the cluster will use.

    Args:
        words: The command, without ``sft-rl``.
        parse: Parses it.
        out: The run folder, unless the command names one.

    Raises:
        UserError: The command is wrong, or names a folder that only this machine has.
    """
    check_strings({f"word {n} after --": word for n, word in enumerate(words, start=1)})
    args = _parsed(words, parse)
    for field, name in (("RUN", "folder"), ("--out", "out"), ("--resume", "resume")):
        path = getattr(args, name, None)
        if isinstance(path, Path):
            _check_absolute(field, str(path))
    mlflow = getattr(args, "mlflow", None)
    if mlflow and not re.match(r"[\w+-]+:|databricks", mlflow):  # a folder
        _check_absolute("--mlflow", mlflow)
    if _search_in(getattr(args, "resume", None)):  # it knows all from its folder
        return JobCommand(tuple(words), str(args.resume), Needs())
    if "out" not in args:
        return JobCommand(tuple(words), None, _needs(words[0], args))
    if args.out is not None:
        return JobCommand(tuple(words), str(args.out), _needs(words[0], args))
    args.out = out if is_url(out) else Path(out)
    return JobCommand((*words, "--out", out), out, _needs(words[0], args))


def check_job(settings: ClusterSettings, target: str, parse: Parse) -> None:
    """Refuse a rendered `job` that would fail as it starts, or start anew when it is run again.

    Raises:
        UserError: With what is wrong.
    """
    if target not in ("kuberay-job", "slurm"):
        return
    try:
        args = _parsed(settings.job, parse)
        files = _needs(settings.job[0], args).files
    except UserError as error:
        raise UserError(f"job: {error}") from None
    is_pod = target == "kuberay-job"
    for file in files:  # a Slurm job runs where they are
        if is_pod and not file.startswith("runs/"):
            raise UserError(
                f"job: {file} is neither in the image nor on the claim; put it there, and name it "
                f"/opt/sft-rl/runs/{Path(file).name}"
            )
    is_repeated = not is_pod or bool(settings.kuberay and settings.kuberay.retries)
    if settings.job[0] not in RESUMABLE or not is_repeated:
        return
    if not (args.out and args.resume == "auto") and not _search_in(args.resume):
        raise UserError(
            "job: is run again after its node was lost; with --out FOLDER and --resume=auto it "
            "goes on, else it starts anew"
        )


def _search_in(resume: Path | str | None) -> bool:
    """Whether `--resume` names the folder of a search, which the command then goes on with."""
    return isinstance(resume, Path) or is_url(resume or "")


def _parsed(words: Sequence[str], parse: Parse) -> argparse.Namespace:
    """Parse a command that clusters know."""
    if not words:
        raise UserError(f"submit: a command is missing after --: one of {', '.join(COMMANDS)}")
    if words[0] not in COMMANDS:
        raise UserError(f"submit: got {words[0]!r} after --; {did_you_mean(words[0], COMMANDS)}")
    return parse(words)


def _needs(command: str, args: argparse.Namespace) -> Needs:
    """Read the command's configuration for what must travel with it, and what must be there."""
    if "needs" in args:
        needs: Needs = args.needs(args)
        return needs
    if "preset" not in args:
        return Needs()
    from sft_rl.config.files import load_config_of
    from sft_rl.config.paths import local_files

    file = getattr(args, "config", None)
    config = load_config_of(args.preset, args.settings, file)
    files = (*([file] if file and not Path(file).is_absolute() else []), *local_files(config))
    return Needs(files, config.rollout if command == "train" else None)


def runtime_environment(file: str | None) -> dict[str, Any]:
    """Read ``--env``: packages to install (`pip` or `uv`) and environment variables.

    Raises:
        UserError: It cannot be read, has other keys, or holds something like a token.
    """
    if file is None:
        return {}
    try:
        raw = read_mapping(file)
    except UserError as error:
        raise UserError(f"--env: {error}") from None
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
    return raw


def _placed(client: Client, args: argparse.Namespace, needs: Needs) -> Bundle:
    """Return what the job's own process asks for, once there is room for all of the job.

    It is the learner, and gets a GPU where there is one, unless told otherwise; CPUs are not kept
    for it, as they are not by `sft-rl train`. That of a search
    only waits for its trials, which have learners of their own.
    """
    nodes = {
        f"{node['node_ip']} ({node['node_id'][:6]})": Bundle(
            node["resources_total"].get("CPU", 0.0),
            node["resources_total"].get("GPU", 0.0),
            node.get("labels") or {},
        )
        for node in alive_nodes(client)
    }
    if needs.check_trials is not None:
        if args.cpus is not None or args.gpus is not None:
            raise UserError(
                "--cpus, --gpus: are for the learner; a search has one in each trial: "
                "set learner.num_cpus and learner.num_gpus"
            )
        if is_fixed(client):
            needs.check_trials(nodes)
        return NOTHING
    gpu_there = any(node.gpus >= 1 for node in nodes.values())
    cpus = 0.0 if args.cpus is None else args.cpus  # as for `ray job submit`
    gpus = float(gpu_there) if args.gpus is None else args.gpus
    if is_fixed(client):
        check_room(nodes, Bundle(cpus, gpus), needs.rollout, field="--cpus, --gpus")
    return Bundle(cpus, gpus)


def _check_absolute(field: str, path: str) -> None:
    if not PurePosixPath(path).is_absolute() and not path.startswith("~/"):
        raise UserError(
            f"{field}: got {path}; on the cluster it must be an absolute path or start with ~/, "
            "on storage that outlives the job"
        )
