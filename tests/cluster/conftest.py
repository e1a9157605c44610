"""A real Ray head on loopback, with a token, and the command line as a user runs it."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

START_S = 60.0
RAY = Path(sys.executable).with_name("ray")


@dataclass(frozen=True)
class Head:
    """A running head: where its job server is, and the environment that holds its token."""

    address: str
    token: str
    environment: dict[str, str]
    folder: Path

    def get(self, path: str) -> Any:
        """Ask the job server."""
        headers = {"Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(self.address + path, headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def knows_its_nodes(self) -> bool:
        """Whether a node and the report that no autoscaler is there have arrived."""
        try:
            nodes = self.get("/api/v0/nodes")["data"]["result"]["result"]
            status = self.get("/api/cluster_status")["data"]["clusterStatus"] or {}
        except URLError:
            return False
        return bool(nodes) and bool(status.get("autoscalerReport", {}).get("activeNodes"))


def wait_for(condition: Callable[[], object], seconds: float = START_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    """Start a head with 2 CPUs; stop it by its own process id."""
    folder = Path(tempfile.mkdtemp(prefix="sft-", dir="/tmp"))  # Ray's sockets need a short path
    token, token_file = secrets.token_hex(32), folder / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(token)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{RAY.parent}:{os.environ['PATH']}",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
    }
    own = {
        "RAY_AUTH_MODE": "token",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RUNTIME_ENV_RETRY_TIMES": "1",
    }
    port, client_port, agent_port = free_ports(3)
    command = [RAY, "start", "--head", "--block", "--port=0", "--num-cpus=2", "--num-gpus=0"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    command += [f"--ray-client-server-port={client_port}"]
    command += [f"--dashboard-agent-listen-port={agent_port}"]
    command += ["--object-store-memory=200000000", f"--temp-dir={folder / 'ray'}"]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=environment | own, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    running = Head(address, token, environment | {"RAY_API_SERVER_ADDRESS": address}, folder)
    try:
        wait_for(running.knows_its_nodes)
        yield running
    finally:
        process.terminate()
        process.wait(timeout=60)
        shutil.rmtree(folder)


@pytest.fixture
def sft_rl(head: Head, tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run `sft-rl` in an empty folder with the head's address and token."""

    def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "sft_rl", *arguments]
        env = head.environment | environment
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)

    return run
