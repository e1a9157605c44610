"""`sft-rl doctor`: what would stop a job, or slow it down, and what to do about it."""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.connection import ClusterError, connect, given_address, job_server
from cluster.helper import ask

Report = dict[str, Any]
"""What `cluster.probe` returns."""

GIB = 2**30
MAX_SKEW_S = 1.0
MIN_MEMORY, MIN_SHM = 2 * GIB, GIB
MIN_MIB_PER_S = 100.0


@dataclass(frozen=True)
class Finding:
    """One row of the table.

    Attributes:
        check: What was looked at.
        found: What there is.
        advice: What to do, if anything.
        level: Whether all is well, a job would suffer, or a job would not run.
    """

    check: str
    found: str
    advice: str = ""
    level: Literal["ok", "warn", "stop"] = "ok"


def run_doctor(args: argparse.Namespace, started: float) -> int:
    """Print the table; return 1 if something would stop a job."""
    try:
        if given_address(args.address):
            findings = _cluster(args)
        else:
            findings = [*diagnose(_this_machine(args.storage or "runs"))]
    except ClusterError as error:
        where, _, what = str(error).partition(": ")
        findings = [Finding(where, what, "see docs/cluster.md", "stop")]
    _print(findings)
    return int(any(finding.level == "stop" for finding in findings))


def diagnose(report: Report) -> Iterator[Finding]:
    """Judge what a probe has found."""
    own = report["versions"]
    yield Finding("versions", ", ".join(f"{name} {number}" for name, number in own.items()))
    storage, problem = report["storage"]["folder"], report["storage"]["problem"]
    if problem:
        advice = "give a folder that can be written with --storage"
        yield Finding("storage", f"{storage}: {problem}", advice, "stop")
    else:
        yield Finding("storage", f"{storage}: written and read back")
    nodes = report["nodes"]
    for node in nodes:
        yield from _node(node, own, shared=problem is None)
    total = {name: sum(node[key] for node in nodes) for name, key in _RESOURCES.items()}
    free = ", ".join(f"{report['free'][n]:g} of {total[n]:g} {n}s" for n in total if total[n])
    if total["CPU"] < 1:
        yield Finding("free", free or "nothing", "start nodes with CPUs", "stop")
    elif report["free"]["CPU"] < 1:
        yield Finding("free", free, "a job waits until others end", "warn")
    else:
        yield Finding("free", free)
    size, seconds = report["broadcast"]["MiB"], report["broadcast"]["seconds"]
    found = f"{size} MiB to {len(nodes)} node(s) in {seconds:.2f} s"
    slow = size / seconds < MIN_MIB_PER_S
    advice = "put the nodes into one fast network; large networks will wait for weights"
    yield Finding("weights", found, advice if slow else "", "warn" if slow else "ok")


_RESOURCES = {"CPU": "cpus", "GPU": "gpus"}


def _node(node: Report, own: dict[str, str], *, shared: bool) -> Iterator[Finding]:
    """Judge one node: one row if all is well, one for each trouble otherwise."""
    name = f"node {node['name']}"
    if "error" in node:
        advice = "the project's packages are missing there: same image, or submit --env"
        yield Finding(name, f"cannot run the project ({node['error']})", advice, "stop")
        return
    for what, theirs in node["versions"].items():
        if theirs != own[what]:
            found, advice = f"{what} {theirs}, not {own[what]}", "give all nodes the same image"
            yield Finding(name, found, advice, "stop")
    if node["gpus"] and node["cuda"] is None:
        yield Finding(name, "GPUs, but a torch without CUDA", "install torch with CUDA", "stop")
    if abs(node["skew"]) > MAX_SKEW_S:
        found = f"its clock is off by {node['skew']:+.1f} s"
        yield Finding(name, found, "turn NTP on; times in logs cannot be compared", "warn")
    if node["memory"] < MIN_MEMORY:
        found = f"{node['memory'] / GIB:.1f} GiB memory free"
        yield Finding(name, found, "free memory; a worker needs about 1 GiB", "warn")
    if node["shm"] < MIN_SHM:
        found = f"{node['shm'] / GIB:.1f} GiB free in /dev/shm"
        yield Finding(name, found, "docker run --shm-size=2g: Ray's objects live there", "warn")
    if shared and not node["reads"]:
        found, advice = "does not see the storage", "use storage that all nodes share, or fetch"
        yield Finding(name, found, advice, "warn")
    cuda = f", CUDA {node['cuda']}" if node["cuda"] else ""
    yield Finding(
        name,
        f"{node['cpus']:g} CPUs, {node['gpus']:g} GPUs{cuda}, "
        f"{node['memory'] / GIB:.0f} GiB memory, {node['shm'] / GIB:.0f} GiB shm",
    )


def _this_machine(storage: str) -> Report:
    """Probe a Ray that is started for it, as a run would start it."""
    from sft_rl.config import RayConfig, RolloutConfig
    from sft_rl.distributed.session import RaySession

    with RaySession(RayConfig(), RolloutConfig()) as session:
        session.wait()
        from cluster.probe import probe  # imports Ray, which must not happen before it starts

        return probe(storage)


def _cluster(args: argparse.Namespace) -> list[Finding]:
    client = connect(args.address)
    findings = [_encryption(job_server(args.address)), _token_file()]
    answers: list[str] = []
    storage = args.storage or "~/sft-rl-runs"
    last = ask(client, "doctor", "cluster.probe", storage, answers.append)
    if answers:
        return [*findings, *diagnose(json.loads(answers[0]))]
    advice = "give the nodes an image with the project's packages (docs/cluster.md)"
    return [*findings, Finding("job", f"a small job failed: {last}", advice, "stop")]


def _token_file() -> Finding:
    """Judge where this machine keeps its token, without reading it."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Finding("token", "accepted; it is in the environment")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if not file.is_file():
        return Finding("token", "the cluster asks for none", "start it in token mode", "warn")
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o077:
        return Finding("token", f"{file} has mode {mode:04o}", f"chmod 600 {file}", "warn")
    return Finding("token", f"accepted; {file} has mode {mode:04o}")


def _encryption(url: str) -> Finding:
    if url.startswith("https://") or any(f"//{h}" in url for h in ("127.", "localhost", "[::1]")):
        return Finding("cluster", url)
    advice = "the token travels in plain text: use SSH or port forwarding (docs/security.md)"
    return Finding("cluster", url, advice, "warn")


def _print(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "check", "found", "what to do", show_edge=False)
    colours: dict[str, Any] = {"ok": "green", "warn": "yellow", "stop": "red"}
    for finding in findings:
        level = f"[{colours[finding.level]}]{finding.level}[/]"
        table.add_row(level, finding.check, finding.found, finding.advice)
    wide = None if sys.stdout.isatty() else 200
    Console(highlight=False, width=wide).print(table)
