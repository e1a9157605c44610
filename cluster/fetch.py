"""Bringing a job's run folder back, through the job server alone.

A small job on the node that ran the job prints the folder as text, and the log comes here. What
arrives is data: it is never unpickled or executed, stays inside a new folder, is compared with
its hashes, and takes its place only when it is whole.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import secrets
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from cluster import send_folder
from cluster.connection import Client, ClusterError, Job, alive_nodes, explained
from cluster.follow import forget, log
from cluster.submit import OUT_KEY, quote
from sft_rl.errors import UserError


def fetch(client: Client, job: Job, target: Path) -> int:
    """Copy the run folder of a job that has ended into a new folder; return how many files.

    Raises:
        UserError: The job has no folder, is still running, or the target exists.
        ClusterError: The folder cannot be read, or did not arrive whole.
    """
    job_id, out = job.submission_id, (job.metadata or {}).get(OUT_KEY)
    if not out:
        raise UserError(f"ID: {job_id} has no run folder that `sft-rl submit` would know of")
    if not job.status.is_terminal():
        raise UserError(f"ID: {job_id} is {job.status}; wait for its end, or stop it first")
    if target.exists():
        raise UserError(f"--to: {target} exists already; choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    aside.mkdir()
    helper = f"fetch-{secrets.token_hex(4)}"
    try:
        _send(client, job, out, helper)
        receiver = Receiver(aside)
        asyncio.run(_receive(client, helper, receiver))
        receiver.check_whole()
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        forget(client, helper)
    return receiver.num_files


class Receiver:
    """Writes the files of a `send_folder` log below a folder; refuses paths that leave it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_files = 0
        self._expected: int | None = None
        self._rest = ""
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()

    def feed(self, text: str) -> None:
        """Take the next part of the log, cut anywhere."""
        *lines, self._rest = (self._rest + text).split("\n")
        try:
            self._take(lines)
        except (json.JSONDecodeError, binascii.Error) as error:
            raise ClusterError(f"fetch: the job's log is damaged: {error}") from None

    def _take(self, lines: list[str]) -> None:
        for line in lines:
            if line.startswith("{"):
                self._control(json.loads(line))
            elif self._file is not None:
                chunk = base64.b64decode(line, validate=True)
                self._digest.update(chunk)
                self._file.write(chunk)

    def check_whole(self) -> None:
        """Refuse a copy with fewer files than were announced."""
        if self._expected is None or self._file or self.num_files != self._expected:
            raise ClusterError(
                f"fetch: {self.num_files} of {self._expected or '?'} files arrived; try again"
            )

    def _control(self, line: dict[str, Any]) -> None:
        match line:
            case {"error": str(error)}:
                raise ClusterError(f"fetch: {error}")
            case {"files": int(files), "bytes": int(size)} if self._expected is None:
                free = shutil.disk_usage(self.folder).free
                if size > free:
                    raise UserError(f"--to: the folder has {size} bytes, the disk {free} free")
                self._expected = files
            case {"path": str(path)} if self._expected is not None and self._file is None:
                target = self.folder / _inside(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                self._file, self._digest = target.open("xb"), hashlib.sha256()
            case {"sha256": str(digest)} if self._file is not None:
                self._file.close()
                if digest != self._digest.hexdigest():
                    raise ClusterError(f"fetch: {self._file.name} arrived damaged; try again")
                self._file = None
                self.num_files += 1
            case _:
                raise ClusterError("fetch: the job's log is not a folder; try again")


def _send(client: Client, job: Job, out: str, helper: str) -> None:
    """Start the small job, where the other one ran if that node is still there."""
    node = job.driver_node_id
    alive = {node["node_id"] for node in alive_nodes(client)}
    with tempfile.TemporaryDirectory(prefix="sft-rl-") as folder, explained(client.get_address()):
        shutil.copy(send_folder.__file__, Path(folder) / "send_folder.py")
        client.submit_job(
            entrypoint=f"python send_folder.py {quote(out)}",
            submission_id=helper,
            runtime_env={"working_dir": folder},
            entrypoint_label_selector={"ray.io/node-id": node} if node in alive else None,
        )


async def _receive(client: Client, helper: str, receiver: Receiver) -> None:
    async for text in log(client, helper):
        receiver.feed(text)


def _inside(path: str) -> PurePosixPath:
    """Return a path that stays inside the folder it is put into.

    Raises:
        ClusterError: It would not.
    """
    inside = PurePosixPath(path)
    odd = not inside.parts or any(p in ("..", "") or "\\" in p or "\0" in p for p in inside.parts)
    if inside.is_absolute() or odd or not path.isprintable():
        raise ClusterError(f"fetch: refused a file named {path!r}, which leaves the run folder")
    return inside
