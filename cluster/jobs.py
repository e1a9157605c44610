"""`sft-rl jobs`: list, logs, stop, fetch."""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import sys
import tempfile
import time
import zipfile
from functools import partial
from pathlib import Path
from typing import BinaryIO

from cluster.connection import Client, ClusterError, Job, alive_nodes, connect, explained
from cluster.follow import ended, follow
from cluster.helper import ask
from cluster.submit import COMMAND_KEY, OUT_KEY
from sft_rl.errors import UserError, did_you_mean
from sft_rl.storage.files import saving


def run_list(args: argparse.Namespace, started: float) -> int:
    """Print the cluster's jobs, the newest first."""
    rows: list[tuple[str, ...]] = [("ID", "STATUS", "BEGAN", "SECONDS", "COMMAND")]
    rows += [_row(job) for job in _jobs(connect(args.address))]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for *cells, command in rows:
        padded = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        sys.stdout.write(f"{padded}  {command}\n")
    return 0


def run_logs(args: argparse.Namespace, started: float) -> int:
    """Print a job's log, and follow it if told so; then return the job's exit code."""
    client = connect(args.address)
    _job(client, args.id)
    if args.follow:
        return follow(client, args.id)
    with explained(client.get_address()):
        sys.stdout.write(client.get_job_logs(args.id))
    return 0


def run_stop(args: argparse.Namespace, started: float) -> int:
    """Stop a job and wait for its end."""
    client = connect(args.address)
    _job(client, args.id)
    with explained(client.get_address()):
        stopped = client.stop_job(args.id)
    job = asyncio.run(ended(client, args.id))
    sys.stdout.write(f"{args.id} {'is' if stopped else 'was already'} {job.status}\n")
    return 0


def run_fetch(args: argparse.Namespace, started: float) -> int:
    """Bring a job's run folder here."""
    client = connect(args.address)
    target = args.to or Path("runs") / args.id
    num_files = fetch(client, _job(client, args.id), target)
    sys.stdout.write(f"{target}: {num_files} files\n")
    return 0


def fetch(client: Client, job: Job, target: Path) -> int:
    """Copy the run folder of a job that has ended into a new folder; return how many files.

    A small job on the node that ran the job sends the folder as a zip, whose extraction makes no
    links, leaves no folder and compares every file's checksum. It takes its place when it is whole.

    Raises:
        UserError: The job has no folder, is still running, or the target exists.
        ClusterError: The folder cannot be read, or did not arrive whole.
        SaveError: It cannot be written here.
    """
    job_id, out = job.submission_id, (job.metadata or {}).get(OUT_KEY)
    if not out:
        raise UserError(f"ID: {job_id} has no run folder that `sft-rl submit` would know of")
    if not job.status.is_terminal():
        raise UserError(f"ID: {job_id} is {job.status}; wait for its end, or stop it first")
    if target.exists():
        raise UserError(f"--to: {target} exists already; choose another folder")
    alive = {node["node_id"] for node in alive_nodes(client)}
    node_id = job.driver_node_id if job.driver_node_id in alive else None
    with saving(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
        with aside as folder, tempfile.TemporaryFile(dir=folder) as archive:
            lines = partial(_decode, archive)
            last = ask(client, "fetch", "cluster.send_folder", out, lines, node_id=node_id)
            if archive.tell() == 0:
                raise ClusterError(f"fetch: {last}")
            whole = Path(folder) / "whole"
            num_files = unpack(archive, whole)
            whole.rename(target)
    return num_files


def unpack(archive: BinaryIO, folder: Path) -> int:
    """Extract a zip into a new folder; return how many files it has."""
    folder.mkdir()
    try:
        with zipfile.ZipFile(archive) as files:
            files.extractall(folder)
            return len(files.namelist())
    except zipfile.BadZipFile as error:
        raise ClusterError(f"fetch: the folder did not arrive whole ({error}); try again") from None


def _decode(archive: BinaryIO, line: str) -> None:
    try:
        archive.write(base64.b64decode(line, validate=True))
    except binascii.Error as error:
        raise ClusterError(f"fetch: the job's log is damaged ({error}); try again") from None


def _jobs(client: Client) -> list[Job]:
    with explained(client.get_address()):
        jobs = [job for job in client.list_jobs() if job.submission_id]
    return sorted(jobs, key=lambda job: -(job.start_time or 0))


def _job(client: Client, job_id: str) -> Job:
    jobs = {job.submission_id: job for job in _jobs(client)}
    if job_id not in jobs:
        hint = did_you_mean(job_id, jobs) if jobs else "it has none"
        raise UserError(f"ID: {client.get_address()} has no job {job_id!r}; {hint}")
    return jobs[job_id]


def _row(job: Job) -> tuple[str, ...]:
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime((job.start_time or 0) / 1000))
    end = job.end_time / 1000 if job.end_time else time.time()
    seconds = f"{end - (job.start_time or 0) / 1000:.0f}"
    own = (job.metadata or {}).get(COMMAND_KEY)
    command = f"sft-rl {own}" if own else job.entrypoint
    return job.submission_id, str(job.status), began, seconds, " ".join(command.split())
