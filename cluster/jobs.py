"""`sft-rl jobs`: list, logs, stop, fetch."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

from cluster.connection import Client, Job, connect, explained
from cluster.fetch import fetch
from cluster.follow import ended, follow
from cluster.submit import COMMAND_KEY
from sft_rl.errors import UserError, did_you_mean


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
