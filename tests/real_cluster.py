"""A real Ray cluster on loopback, with a token: a head and two more nodes on this machine."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError

PATIENCE_S = 300.0
"""How long a busy machine may take for what is waited for."""
RAY = Path(sys.executable).with_name("ray")
NODE = """
import signal, sys
from ray._private.node import Node
from ray._private.parameter import RayParams

address, name, port, folder = sys.argv[1:]
Node(
    RayParams(
        gcs_address=address,
        num_cpus=2,
        num_gpus=0,
        labels={"name": name},
        object_store_memory=10**8,
        dashboard_agent_listen_port=int(port),
        temp_dir=folder,  # as on a machine of its own: nodes unpack what a job brings there
    ),
    head=False,
    shutdown_at_exit=True,
    spawn_reaper=False,
)
signal.pause()
"""
"""What `ray start --address` does; the command itself refuses to join on loopback."""


def wait_for(
    condition: Callable[[], object], seconds: float = PATIENCE_S, *, every_s: float = 0.2
) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(every_s)


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass
class RealCluster:
    """A running cluster.

    Attributes:
        folder: Where it keeps its files.
        token: What it asks for.
        address: Its job server.
        gcs: Where a driver joins.
        environment: What a user's terminal has: the token's file and the job server's address.
        nodes: The processes that started the further nodes, by their label.
    """

    folder: Path
    token: str
    address: str
    gcs: str
    environment: dict[str, str]
    nodes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def get(self, path: str) -> Any:
        """Ask the job server."""
        headers = {"Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(self.address + path, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def state(self, what: str) -> list[dict[str, Any]]:
        """Return what Ray knows of all ``nodes`` or ``actors`` that are alive."""
        answer = self.get(f"/api/v0/{what}?detail=true&limit=1000")
        return [one for one in answer["data"]["result"]["result"] if one["state"] == "ALIVE"]

    def actors(self, class_name: str) -> list[dict[str, Any]]:
        """Return the live actors of a class; Ray gives some classes with where they were made."""
        actors = self.state("actors")
        return [one for one in actors if one["class_name"].rpartition(".")[2] == class_name]

    def scraped(self) -> str:
        """What Prometheus would read of all nodes now, where Ray tells it to."""
        found = self.folder / "ray" / "prom_metrics_service_discovery.json"
        if not found.exists():
            return ""
        places = [place for group in json.loads(found.read_text()) for place in group["targets"]]
        texts = []
        for place in places:
            with suppress(URLError):  # of a node that is going
                texts.append(urllib.request.urlopen(f"http://{place}/metrics").read().decode())
        return "\n".join(texts)

    def is_up(self, num_nodes: int) -> bool:
        """Whether the nodes and the report that no autoscaler is there have arrived."""
        try:
            nodes = self.state("nodes")
            status = self.get("/api/cluster_status")["data"]["clusterStatus"] or {}
        except URLError:
            return False
        known = status.get("autoscalerReport", {}).get("activeNodes", {})
        return len(nodes) == num_nodes == len(known)

    def run(self, *arguments: str, cwd: Path, **environment: str) -> Any:
        """Run `sft-rl` as a user of the cluster does."""
        command = [sys.executable, "-m", "sft_rl", *arguments]
        env = self.environment | environment
        return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True)

    def start(self, name: str, command: list[str]) -> "subprocess.Popen[bytes]":
        """Start the process of one node; all that it starts is in its process group."""
        own = {
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RUNTIME_ENV_RETRY_TIMES": "1",
            "RAY_worker_niceness": "0",  # else the tests beside it would starve its workers
            "RAY_prestart_worker_first_driver": "0",  # for each job as many as CPUs
        }
        with (self.folder / f"{name}.log").open("w") as log:
            return subprocess.Popen(
                command, env=self.environment | own, stdout=log, stderr=log, start_new_session=True
            )

    def add_node(self) -> None:
        """Start a further node; it may take seconds to appear."""
        name = f"node-{secrets.token_hex(2)}"
        command = [sys.executable, "-c", NODE, self.gcs, name, str(free_ports(1)[0])]
        command += [str(self.folder / name)]
        self.nodes[name] = self.start(name, command)

    def fill(self) -> None:
        """See that there are three nodes."""
        while len(self.nodes) < 2:  # at once, two would take the same socket
            self.add_node()
            wait_for(lambda: len(self.state("nodes")) == 1 + len(self.nodes))
        wait_for(lambda: self.is_up(3))

    def kill_node(self, node_id: str) -> None:
        """Kill a further node with all that runs on it, as a power cut does."""
        (labels,) = (n["labels"] for n in self.state("nodes") if n["node_id"] == node_id)
        process = self.nodes.pop(labels["name"])
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def real_cluster() -> Iterator[RealCluster]:
    """Start a head and two more nodes, with 2 CPUs each."""
    folder = Path(tempfile.mkdtemp(prefix="sft-", dir="/tmp"))  # Ray's sockets need a short path
    token, token_file = secrets.token_hex(32), folder / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(token)
    gcs_port, port, client_port, agent_port = free_ports(4)
    address = f"http://127.0.0.1:{port}"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{RAY.parent}:{os.environ['PATH']}",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_API_SERVER_ADDRESS": address,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # binds every socket to loopback
    }
    running = RealCluster(folder, token, address, f"127.0.0.1:{gcs_port}", environment)
    command = [str(RAY), "start", "--head", "--block", "--num-cpus=2", "--num-gpus=0"]
    command += [f"--port={gcs_port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    command += [f"--ray-client-server-port={client_port}"]
    command += [f"--dashboard-agent-listen-port={agent_port}"]
    command += ["--object-store-memory=100000000", f"--temp-dir={folder / 'ray'}"]
    head = running.start("head", command)
    try:
        wait_for(lambda: running.is_up(1))
        running.fill()
        yield running
    finally:
        for process in (*running.nodes.values(), head):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder)
