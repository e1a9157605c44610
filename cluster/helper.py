"""Small jobs of our own: a question to a node of the cluster, answered through the job's log."""

from __future__ import annotations

import asyncio
import secrets
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path

from cluster import ANSWER
from cluster.connection import Client, explained
from cluster.follow import ended, log
from cluster.package import stage


def ask(
    client: Client,
    kind: str,
    module: str,
    argument: str,
    take: Callable[[str], object],
    *,
    node_id: str | None = None,
) -> str:
    """Run a module of this project as a job, and take the job off the cluster's list again.

    Args:
        client: The cluster's job server.
        kind: What the job's ID begins with.
        module: What to run.
        argument: Its argument.
        take: Gets what follows `ANSWER` in each line that begins so.
        node_id: Where to run it; by default anywhere.

    Returns:
        The last other line: if there is no answer, it says why.

    Raises:
        ClusterError: The job cannot be sent, or its log does not come back.
    """
    job_id = f"{kind}-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix="sft-rl-") as folder, explained(client.get_address()):
        stage(Path(folder), ())
        client.submit_job(
            entrypoint=f"python -m {module} {quote(argument)}",
            submission_id=job_id,
            runtime_env={"working_dir": folder},
            entrypoint_label_selector={"ray.io/node-id": node_id} if node_id else None,
        )
    try:
        return asyncio.run(_listen(client, job_id, take))
    finally:
        with explained(client.get_address()):
            client.stop_job(job_id)
            asyncio.run(ended(client, job_id))
            client.delete_job(job_id)


async def _listen(client: Client, job_id: str, take: Callable[[str], object]) -> str:
    rest = last = ""
    async for text in log(client, job_id):
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            if line.startswith(ANSWER):
                take(line.removeprefix(ANSWER))
            else:
                last = line.strip() or last
    return rest.strip() or last or "it printed nothing"


def quote(word: str) -> str:
    """Quote a word for the cluster's shell, which still expands a leading ``~/``."""
    return f"~/{shlex.quote(word[2:])}" if word.startswith("~/") else shlex.quote(word)
