"""Kill what runs, at random times, and see that nothing is lost.

    python -m benchmarks.chaos --kills 50 --seed 0
    python -m benchmarks.chaos --kinds autoscaler --runs 1 --iterations 5000 --untimed

Real runs of ``sft-rl train`` in processes of their own. While one goes on, a rollout worker, a
scorer, the learner, the driver or a whole node gets SIGKILL, or a worker gets SIGSTOP and hangs. A
killed driver is started again with the same command (``--resume auto``). Under an autoscaler nodes
leave and join, each some 25 s after another; there are none to three, and calls of the network are
slow. At the end each run's ``policy_sha256`` is compared with that of a run nobody disturbed, and
its metrics.csv must have every row once.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, machine
from benchmarks.nodes import Nodes, started_nodes
from benchmarks.slow_network import CALL_S
from sft_rl.distributed.session import set_local_environment

SETTINGS = (
    "data.num_points=2000",
    "model.width=16",
    "model.depth=1",
    "pretraining.num_iterations=20",
    "pretraining.batch_size=64",
    "pretraining.num_times=16",
    "sampler.num_steps=4",
    "critic.width=16",
    "critic.num_warmup_steps=2",
    "value.width=16",
    "training.batch_size=64",
    "training.eval_every=100",
    "training.checkpoint_every=25",
    "training.plots=false",
    "metrics.num_samples=400",
    "metrics.num_exact=100",
    "metrics.num_projections=20",
    "rollout.shards_per_batch=2",
)
HANG_S = 5
STILL_S = 60.0
"""So long nothing happens to a run that does not go on, such as one without nodes."""
LOST_S = 300.0
"""A run that has not ended so long after its last kill is lost."""
WORKERS = (
    "rollout.num_workers=2",
    "rollout.num_cpus_per_worker=0.5",
    f"rollout.timeout_s={HANG_S}",
)
LEARNER = ("learner.launcher=ray_train", "learner.num_cpus=0.5", "learner.max_failures=100")
ONE_WORKER = ("rollout.num_workers=1", *WORKERS[1:])
RIGHT = "use: 'examples.reward_server:right_half', weight: 0.1"
SLOW = "model.factory=benchmarks.slow_network:SlowNetwork"
SCORED = f"reward.terms=[critic, {{{RIGHT}}}]"
SCORERS = f"reward.terms=[critic, {{{RIGHT}, num_scorers: 2, num_cpus_per_scorer: 0.2}}]"


@dataclass(frozen=True)
class Kind:
    """A way to run, and what can happen to it.

    Attributes:
        settings: Beside SETTINGS; those that change the result are in `own`, too.
        kills: What may be killed; drivers and nodes, which cost most time, less often.
        nodes: Nodes beside the head of a cluster; none starts a Ray of the run's own.
        own: What changes the result, as the undisturbed run has it, in one process.
        call_s: Seconds that a call of a slow network takes.
        pause_s: At most so long nothing happens, in the midst of a run.
        may_start: Whether it is left alone until it has begun: it would be refused without room.
    """

    settings: tuple[str, ...]
    kills: tuple[str, ...]
    nodes: int = 0
    own: str = "reward=critic"
    pause_s: float = 3.0
    may_start: bool = False
    call_s: float = 0.0


KINDS = {
    "workers": Kind(WORKERS, ("worker", "worker", "hang", "hang", "driver")),
    "ray_train": Kind((*LEARNER, *ONE_WORKER), ("worker", "hang", "learner", "learner", "driver")),
    "cluster": Kind((*LEARNER, *ONE_WORKER), ("node", "node", "worker", "learner"), nodes=2),
    "autoscaler": Kind(
        (*WORKERS[1:], "rollout.num_workers=3", SLOW),
        ("leave", "leave", "join", "join", "worker"),
        nodes=2,
        own=SLOW,
        pause_s=50.0,
        may_start=True,
        call_s=0.05,
    ),
    "scorers": Kind((*ONE_WORKER, SCORERS), ("scorer", "scorer", "scorer", "worker"), 0, SCORED),
}
KILLED = [name for name in KINDS if name != "autoscaler"]
"""What is killed unless other kinds are named."""
TITLES = {
    "worker": "ray::RolloutWorker",
    "hang": "ray::RolloutWorker",
    "scorer": "ray::Scorer",
    "learner": "ray::RayTrainW",
}


@dataclass
class Run:
    """One disturbed run."""

    kind: str
    kills: list[str] = field(default_factory=list)
    starts: int = 0
    seconds: float = 0.0
    replaced_workers: int = 0
    same_policy: bool = False
    rows_once: bool = False


def descendants(root: int) -> dict[int, str]:
    """Command lines of all processes below one, by process id."""
    parents, titles = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state = (folder / "stat").read_text().rsplit(")", 1)[1].split()
                titles[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            parents[int(folder.name)] = int(state[1]) if state[0] != "Z" else 0
    below = {root}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return {pid: titles[pid] for pid in below - {root}}


def command(out: Path, iterations: int, settings: tuple[str, ...]) -> list[str]:
    """The command of a run, the same for a first start and for going on."""
    words = [sys.executable, "-m", "sft_rl", "train", "swiss_roll", *SETTINGS, *settings]
    return [*words, f"training.num_iterations={iterations}", "--out", str(out), "--resume", "auto"]


def policy_sha256(out: Path) -> str:
    """What a run's policy is known by; nothing if it has not ended."""
    file = out / "summary.json"
    return str(json.loads(file.read_text())["policy_sha256"]) if file.exists() else ""


def has_every_row_once(out: Path, iterations: int) -> bool:
    """Whether metrics.csv has the rows 1, 2, … in order."""
    with (out / "metrics.csv").open(newline="") as stream:
        return [int(row["iteration"]) for row in csv.DictReader(stream)] == list(
            range(1, iterations + 1)
        )


class Chaos:
    """Disturbs runs.

    Args:
        iterations: Length of a run.
        seed: Of the times and the victims.
    """

    def __init__(self, iterations: int, seed: int) -> None:
        self.iterations = iterations
        self.source = random.Random(seed)
        self.hung: set[int] = set()

    def disturb(self, kind: str, kills: int, out: Path, nodes: Nodes | None) -> Run:
        """Run once, with up to a number of kills."""
        run, begun = Run(kind), time.monotonic()
        address = () if nodes is None else (f"ray.address={nodes.address}",)
        words = command(out, self.iterations, (*KINDS[kind].settings, *address))
        log = out.with_suffix(".log")
        code = None
        while code != 0:
            with log.open("a") as stream:
                driver = subprocess.Popen(words, stdout=stream, stderr=stream)
            run.starts += 1
            if KINDS[kind].may_start:
                self._await_rows(driver, out)
            while (code := driver.poll()) is None and len(run.kills) < kills:
                self._wait(driver, out, KINDS[kind].pause_s)
                if driver.poll() is None and (done := self._kill(kind, driver.pid, nodes)):
                    run.kills.append(done)
                    print(f"  {time.monotonic() - begun:5.1f} s  {done}", flush=True)
            try:
                code = driver.wait(timeout=LOST_S)
            except subprocess.TimeoutExpired:
                driver.kill()
                code = driver.wait() - 1000  # neither its end nor a kill of ours
            if code not in (0, -signal.SIGKILL):
                print(log.read_text())
                break
        run.seconds = round(time.monotonic() - begun, 1)
        run.replaced_workers = log.read_text().count("it is replaced")
        run.rows_once = code == 0 and has_every_row_once(out, self.iterations)
        return run

    def _wait(self, driver: subprocess.Popen[bytes], out: Path, pause_s: float) -> None:
        """Wait some seconds: while a run starts, or while it goes on."""
        deadline = time.monotonic() + self.source.uniform(0.5, 6.0)
        if self.source.random() < 0.8:  # mostly in the midst of fine-tuning
            before = out.joinpath("metrics.csv").stat().st_mtime if self._has_rows(out) else 0.0
            self._await_rows(driver, out, newer_than=before, seconds=STILL_S)
            deadline = time.monotonic() + self.source.uniform(0.0, pause_s)
        while time.monotonic() < deadline and driver.poll() is None:
            time.sleep(0.05)

    def _await_rows(
        self,
        driver: subprocess.Popen[bytes],
        out: Path,
        *,
        newer_than: float = 0.0,
        seconds: float = math.inf,
    ) -> None:
        """Wait for rows of a run, or its end."""
        latest = time.monotonic() + seconds
        while driver.poll() is None and not self._has_rows(out, newer_than=newer_than):
            if time.monotonic() > latest:
                return
            time.sleep(0.05)

    @staticmethod
    def _has_rows(out: Path, newer_than: float = 0.0) -> bool:
        file = out / "metrics.csv"
        return file.exists() and file.stat().st_mtime > newer_than

    def _kill(self, kind: str, driver: int, nodes: Nodes | None) -> str:
        """Do something to a run; return what, or nothing if there was no such process."""
        what = self.source.choice(KINDS[kind].kills)
        if what == "driver":
            os.kill(driver, signal.SIGKILL)
        elif what == "node":
            assert nodes is not None, "only a cluster has nodes"
            nodes.leave(self.source)
            nodes.join()
        elif what in ("leave", "join"):
            assert nodes is not None, "only a cluster has nodes"
            if what == "leave" and nodes.leave(self.source):
                return what
            return "join" if nodes.join() else ""
        else:
            root = driver if nodes is None else os.getpid()
            found = [p for p, title in descendants(root).items() if title.startswith(TITLES[what])]
            if not found:
                return ""
            victim = self.source.choice(sorted(found))
            os.kill(victim, signal.SIGSTOP if what == "hang" else signal.SIGKILL)
            if what == "hang":
                self.hung.add(victim)
        return what

    def clear(self) -> None:
        """Kill those that still hang: nobody was left to do it after their driver was killed."""
        for pid in self.hung:
            stat = Path(f"/proc/{pid}/stat")
            if stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "T":
                os.kill(pid, signal.SIGKILL)
        self.hung.clear()


def main() -> None:
    """Disturb runs until there were enough kills; print a table and keep it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, help="50 if not given, and no number of runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=3000)
    parser.add_argument("--kills-per-run", type=int, default=9)
    parser.add_argument("--runs", type=int, help="so many, disturbed from beginning to end")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=KILLED)
    parser.add_argument("--untimed", action="store_true", help="time no undisturbed runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "chaos.json")
    args = parser.parse_args()
    args.kills = args.kills or (10**6 if args.runs else 50)
    set_local_environment()
    os.environ["OMP_NUM_THREADS"] = "1"
    chaos = Chaos(args.iterations, args.seed)
    runs: list[Run] = []
    undisturbed: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        expected: dict[str, str] = {}
        for own in {KINDS[kind].own for kind in args.kinds}:
            out = Path(folder) / f"baseline-{len(expected)}"
            words = command(out, args.iterations, ("rollout.num_workers=0", own))
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            expected[own] = policy_sha256(out)
        for kind in () if args.untimed else args.kinds:
            with started_nodes(KINDS[kind].nodes) as nodes:
                alone = chaos.disturb(kind, 0, Path(folder) / f"{kind}-undisturbed", nodes)
                undisturbed[kind] = alone.seconds
        while sum(len(run.kills) for run in runs) < args.kills and len(runs) != args.runs:
            kind = args.kinds[len(runs) % len(args.kinds)]
            left = args.kills - sum(len(run.kills) for run in runs)
            out = Path(folder) / f"run-{len(runs)}"
            print(f"run {len(runs)}: {kind}", flush=True)
            os.environ[CALL_S] = str(KINDS[kind].call_s)
            with started_nodes(KINDS[kind].nodes) as nodes:
                most = left if args.runs else min(left, args.kills_per_run)
                run = chaos.disturb(kind, most, out, nodes)
            chaos.clear()
            run.same_policy = policy_sha256(out) == expected[KINDS[kind].own]
            runs.append(run)
            print(f"  {run}", flush=True)
    report(args, runs, undisturbed)


def report(args: argparse.Namespace, runs: list[Run], undisturbed: dict[str, float]) -> None:
    """Print the table and write the results; exit with 1 if anything was lost."""
    kills = Counter(kill for run in runs for kill in run.kills)
    extra = {
        kind: [round(run.seconds - undisturbed[kind], 1) for run in runs if run.kind == kind]
        for kind in undisturbed
    }
    lost = sum(not (run.same_policy and run.rows_once) for run in runs)
    result: dict[str, Any] = {
        "machine": machine(),
        "settings": {k: v for k, v in vars(args).items() if k != "out"},
        "kills": dict(kills),
        "num_kills": sum(kills.values()),
        "num_runs": len(runs),
        "lost_runs": lost,
        "same_policy": sum(run.same_policy for run in runs),
        "undisturbed_seconds": undisturbed,
        "extra_seconds": extra,
        "runs": [asdict(run) for run in runs],
    }
    print("| killed | times |\n|---|---|")
    for kill, count in kills.most_common():
        print(f"| {kill} | {count} |")
    print(f"{len(runs)} runs, {lost} lost; {result['same_policy']} with the undisturbed policy")
    for kind, seconds in extra.items():
        print(f"{kind}: undisturbed {undisturbed[kind]} s, extra seconds {seconds}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    if lost:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
