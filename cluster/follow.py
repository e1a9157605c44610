"""Following a job: its logs as they come, Ctrl-C, and the exit code in the end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

from cluster.connection import Client, ClusterError, Job, explained

NOT_STARTED = 4
INTERRUPTED = 130
STOPPED = 143
PATIENCE_S = 10.0
POLL_S = 0.5
MAX_LOST_CONNECTIONS = 5


def follow(client: Client, job_id: str) -> int:
    """Print a job's logs until it ends; return its exit code.

    Ctrl-C asks whether the job shall go on, which is what happens without an answer.
    """
    try:
        return exit_code(asyncio.run(print_log(client, job_id)))
    except KeyboardInterrupt:
        if not _asked_to_stop():
            sys.stderr.write(f"\n{job_id} goes on; `sft-rl jobs logs {job_id} --follow` returns\n")
            return INTERRUPTED
    return stop(client, job_id)


def stop(client: Client, job_id: str) -> int:
    """Stop a job and wait for its end; return its exit code."""
    with explained(client.get_address()):
        client.stop_job(job_id)
    return exit_code(asyncio.run(ended(client, job_id)))


async def log(client: Client, job_id: str) -> AsyncIterator[str]:
    """Yield a job's log as it grows, until the job has ended.

    A lost connection is taken up again where it was lost.

    Raises:
        ClusterError: The connection is lost and does not come back.
    """
    import aiohttp

    with explained(client.get_address()):
        job = await _started(client, job_id)
    seen = lost = 0
    while True:
        position = 0
        try:
            async for text in client.tail_job_logs(job_id):
                position += len(text)
                if position > seen:
                    yield text[seen - position :]
                    seen, lost = position, 0
            job = client.get_job_info(job_id)
            if job.status.is_terminal():
                return
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            lost += 1
            if lost > MAX_LOST_CONNECTIONS:
                raise ClusterError(
                    f"--address: lost the connection to {client.get_address()} "
                    f"({type(error).__name__}); {job_id} goes on without us, "
                    f"`sft-rl jobs logs {job_id} --follow` returns to it"
                ) from None
        await asyncio.sleep(POLL_S)


async def print_log(client: Client, job_id: str) -> Job:
    """Print a job's log as plain lines until the job ends; return the job."""
    async for text in log(client, job_id):
        sys.stdout.write(text)
        sys.stdout.flush()
    with explained(client.get_address()):
        return client.get_job_info(job_id)


async def ended(client: Client, job_id: str) -> Job:
    """Wait for a job's end; return the job."""
    with explained(client.get_address()):
        while not (job := client.get_job_info(job_id)).status.is_terminal():
            await asyncio.sleep(POLL_S)
    return job


def exit_code(job: Job) -> int:
    """Return the exit code for a job that has ended, and say what is not in its logs."""
    if job.status == "STOPPED":
        sys.stderr.write("sft-rl: the job was stopped\n")
        return STOPPED
    code = job.driver_exit_code
    if code is None:
        sys.stderr.write(f"sft-rl: the job did not run to its end: {reason(job)}\n")
        return NOT_STARTED
    return int(code) if code >= 0 else 128 - int(code)


def reason(job: Job) -> str:
    """Return one line about a job that failed by no fault of its command."""
    lines = [line.strip() for line in (job.message or "").splitlines() if line.strip()]
    error = next((line for line in lines if line.startswith(("ERROR", "error:"))), "")
    return f"{lines[0]} {error}".strip() if lines else "Ray gives no reason"


async def _started(client: Client, job_id: str) -> Job:
    """Wait until a job has left the queue; tell a person why it takes long."""
    waited = 0.0
    while (job := client.get_job_info(job_id)).status == "PENDING":
        if waited == PATIENCE_S:
            sys.stderr.write(f"sft-rl: still waiting: {reason(job)}\n")
        waited += POLL_S
        await asyncio.sleep(POLL_S)
    return job


def _asked_to_stop() -> bool:
    if not sys.stdin.isatty():
        return False
    sys.stderr.write("\nThe job is still running. Stop it? [y/N] ")
    sys.stderr.flush()
    try:
        return sys.stdin.readline().strip().lower() in ("y", "yes", "stop")
    except KeyboardInterrupt:
        return False
