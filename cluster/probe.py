"""Looks at every node of a Ray cluster, from inside; `sft-rl doctor` reads what it prints."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray

from cluster import ANSWER
from sft_rl.distributed.nodes import alive_nodes, node_name, on_node, versions
from sft_rl.storage.urls import reach

BROADCAST_MIB = 64

Report = dict[str, Any]


def probe(storage: str) -> Report:
    """Return what there is, under a Ray that runs: cluster, nodes, storage, bandwidth."""
    nodes = alive_nodes()
    content = secrets.token_bytes(2**20)
    file = f"{storage.rstrip('/')}/.doctor-{secrets.token_hex(4)}"
    problem = _write(file, content)
    looks = [on_node(look, node).remote(file) for node in nodes]
    digest = hashlib.sha256(content).hexdigest()
    reports = []
    for node, answer in zip(nodes, looks, strict=True):
        report: Report = {"name": node_name(node)}
        report |= {"cpus": node["Resources"].get("CPU", 0), "gpus": node["Resources"].get("GPU", 0)}
        try:
            seen = ray.get(answer, timeout=120)
        except ray.exceptions.RayError as error:
            reports.append(report | {"error": type(error).__name__})
            continue
        report |= {"skew": _skew(node), "reads": seen.pop("digest") == digest}
        reports.append(report | seen)
    if problem is None:
        filesystem, path = reach(file)
        filesystem.delete_file(path)
    healthy = [n for n, report in zip(nodes, reports, strict=True) if "error" not in report]
    return {
        "versions": versions(),
        "storage": {"folder": storage, "problem": problem},
        "free": {name: ray.available_resources().get(name, 0.0) for name in ("CPU", "GPU")},
        "nodes": reports,
        "broadcast": {"MiB": BROADCAST_MIB, "seconds": _broadcast(healthy)},
    }


def look(file: str) -> Report:
    """Return what a node has and the hash of the file that another one has written."""
    import torch

    content = _read(file)
    return {
        "versions": versions(),
        "cuda": torch.version.cuda,
        "memory": _available_memory(),
        "shm": shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0,
        "digest": None if content is None else hashlib.sha256(content).hexdigest(),
    }


def clock() -> float:
    """Return a node's time."""
    return time.time()


def receive(array: np.ndarray) -> int:
    """Take part in a broadcast."""
    return array.nbytes


def _write(file: str, content: bytes) -> str | None:
    """Write a file and read it back; return what went wrong."""
    try:
        storage, path = reach(file)
        storage.create_dir(path.rpartition("/")[0], recursive=True)
        with storage.open_output_stream(path) as stream:
            stream.write(content)
    except (OSError, ValueError, ImportError) as error:
        return str(error).splitlines()[0]
    return None if _read(file) == content else "what is read is not what was written"


def _read(file: str) -> bytes | None:
    """Return a file's content, if it can be read here."""
    try:
        storage, path = reach(file)
        with storage.open_input_stream(path) as stream:
            return bytes(stream.read())
    except (OSError, ValueError, ImportError):
        return None


def _skew(node: dict[str, Any]) -> float:
    """Return how many seconds a node's clock is ahead of ours, less what the way could explain."""
    begun = time.time()
    theirs: float = ray.get(on_node(clock, node).remote())
    ended = time.time()
    return min(theirs - begun, 0.0) + max(theirs - ended, 0.0)


def _broadcast(nodes: list[dict[str, Any]]) -> float:
    """Return the seconds until every node has the same array, the way weights travel."""
    content = np.frombuffer(secrets.token_bytes(BROADCAST_MIB * 2**20), dtype=np.uint8)
    begun = time.perf_counter()
    array = ray.put(content)
    ray.get([on_node(receive, node).remote(array) for node in nodes])
    return time.perf_counter() - begun


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable")


if __name__ == "__main__":
    ray.init(log_to_driver=False)
    sys.stdout.write(ANSWER + json.dumps(probe(sys.argv[1])) + "\n")
