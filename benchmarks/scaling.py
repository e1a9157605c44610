"""How far workers scale: simulated rollouts, so that a small machine carries many workers.

    python -m benchmarks.scaling --workers 1 2 4 8 16 32 64 --nodes 4

The last row lets the workers draw the next iteration while the learner updates on this one
(`training.max_offpolicy_steps=1`).

The real collector hands out shards, moves weights and gathers trajectories. Only the policy is
simulated: it sleeps for the time that a rollout takes. Several Ray nodes run on this machine, so
the loopback interface counts what would travel between machines. With ``--processes 4``
workers are threads of so many processes, for numbers whose processes this machine could not hold:
the driver makes the same calls, and pays the same for them.
"""

from __future__ import annotations

import argparse
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import RESULTS, machine
from sft_rl.config import RolloutConfig
from sft_rl.distributed.session import set_local_environment
from sft_rl.rollout.runner import Request, Weights
from sft_rl.types import Trajectories

NUM_STEPS, BATCH, DIM = 10, 64, 2
FREE_CPUS = 0.01
"""Logical CPUs of a worker: it sleeps, so any number fits on a node."""


class SleepingRunner:
    """Takes weights and returns trajectories as a real runner does, but sleeps in between."""

    def __init__(self, rollout_s: float) -> None:
        self.rollout_s = rollout_s
        self.loaded = threading.local()
        self.latents = torch.zeros(NUM_STEPS + 1, BATCH, DIM)

    def load(self, version: int, weights: Weights) -> None:
        """See that the weights are there; to copy them is a part of the rollout that sleeps."""
        assert all(np.isfinite(array[0]) for array in weights.values())
        self.loaded.version = version

    def collect(self, iteration: int, shard: int) -> Trajectories:
        """Sleep for as long as a rollout takes."""
        time.sleep(self.rollout_s)
        log_probs, rewards = torch.zeros(NUM_STEPS, BATCH), torch.zeros(0, BATCH)
        return Trajectories(self.latents, log_probs, rewards, self.loaded.version)


@dataclass(frozen=True)
class Row:
    """One number of workers.

    Attributes:
        workers: How many; each draws one shard an iteration.
        ahead: Whether the next iteration is drawn while the learner updates.
        efficiency: Ideal over measured seconds of an iteration.
        iteration_s: Median seconds of an iteration.
        learner_idle: Share of the time in which the learner waits for trajectories.
        weight_copies: Copies of one version's weights that the cluster's object stores hold.
        weight_bytes_sent: Bytes over the network for one version, by all nodes together.
        weight_bytes: Bytes of one version.
        driver_cpu_s: Processor seconds of the learner's process an iteration, all its threads.
    """

    workers: int
    ahead: bool
    efficiency: float
    iteration_s: float
    learner_idle: float
    weight_copies: int
    weight_bytes_sent: int
    weight_bytes: int
    driver_cpu_s: float


@contextmanager
def cluster(num_nodes: int) -> Iterator[None]:
    """Start a head and further nodes on this machine, on loopback; join them."""
    import ray
    from ray.cluster_utils import Cluster

    own = {"num_cpus": 1, "object_store_memory": 300 * 2**20}
    nodes = Cluster(initialize_head=True, head_node_args={**own, "include_dashboard": False})
    try:
        for _ in range(num_nodes - 1):
            nodes.add_node(**own)
        ray.init(address=nodes.address, log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        nodes.shutdown()


def measure(
    workers: int,
    *,
    ahead: bool,
    iterations: int,
    rollout_s: float,
    learner_s: float,
    weights: Weights,
    processes: int,
) -> Row:
    """Run the trainer's loop with a learner that updates for `learner_s` after every batch."""
    import ray

    config = RolloutConfig(num_workers=workers, num_cpus_per_worker=FREE_CPUS)
    make: Any = partial(SleepingRunner, rollout_s)
    collector = _collector(make, config, processes)
    seconds, waited, sent, cpu = [], [], [], []
    orders = (Request(i, i, weights, num_shards=workers) for i in range(iterations + 2))
    if ahead:
        collector.submit(next(orders))
    # Iteration 0 starts the workers and is not counted.
    for _ in range(iterations + 1):
        before, begun, used = _loopback_bytes(), time.perf_counter(), time.process_time()
        collector.submit(next(orders))
        asked = time.perf_counter()
        for _ in collector.results():
            pass
        waited.append(time.perf_counter() - asked)
        time.sleep(learner_s)
        seconds.append(time.perf_counter() - begun)
        sent.append(_loopback_bytes() - before)
        cpu.append(time.process_time() - used)
    collector.close()
    reference = ray.put(weights)
    ray.get([_reader(node).remote([reference]) for node in ray.nodes() for _ in range(2)])
    places = ray.experimental.get_object_locations([reference])[reference]
    median = float(np.median(seconds[1:]))
    return Row(
        workers=workers,
        ahead=ahead,
        efficiency=round((max if ahead else sum)((rollout_s, learner_s)) / median, 4),
        iteration_s=round(median, 4),
        learner_idle=round(sum(waited[1:]) / sum(seconds[1:]), 4),
        weight_copies=len(places["node_ids"]),
        weight_bytes_sent=int(np.median(sent[1:])),
        weight_bytes=sum(array.nbytes for array in weights.values()),
        driver_cpu_s=round(float(np.median(cpu[1:])), 4),
    )


def _collector(make: Any, config: RolloutConfig, num_processes: int) -> Any:
    """A collector of workers in processes of their own, or of threads of some."""
    import ray

    from sft_rl.distributed.collector import RayCollector, RolloutWorker

    if not num_processes:
        return RayCollector(make, config)
    threaded = ray.remote(RolloutWorker).options(
        num_cpus=FREE_CPUS,
        max_concurrency=-(-config.num_workers // num_processes),
        scheduling_strategy="SPREAD",
    )
    processes = [threaded.remote(make, 1, None) for _ in range(num_processes)]

    class Threads(RayCollector):
        def _start(self) -> Any:
            self._num_started += 1
            return processes[self._num_started % num_processes]

    return Threads(make, config)


def _reader(node: dict[str, Any]) -> Any:
    from sft_rl.distributed.nodes import on_node

    return on_node(_read, node)


def _read(references: list[Any]) -> int:
    import ray

    return len(ray.get(references[0]))


def _loopback_bytes() -> int:
    """Return what the loopback interface has sent since the machine started."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split()[9])
    raise RuntimeError("/proc/net/dev has no loopback interface")


def main() -> None:
    """Measure, print a table, and keep it with a description of the machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--rollout-s", type=float, default=1.0)
    parser.add_argument("--learner-s", type=float, default=0.1)
    parser.add_argument("--weights-mib", type=float, default=16.0)
    parser.add_argument("--processes", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.json")
    args = parser.parse_args()
    set_local_environment()
    size = int(args.weights_mib * 2**18)
    # Random, so that nothing on the way can make them smaller.
    words = np.frombuffer(secrets.token_bytes(2 * size), dtype=np.uint16)
    weights = {"network": words.astype(np.float32)}
    rows = []
    with cluster(args.nodes):
        names = "workers  ahead  efficiency  seconds  learner idle  copies  sent / weights"
        print(f"{names}  driver CPU s")
        for workers, ahead in [*((w, False) for w in args.workers), (args.workers[-1], True)]:
            row = measure(
                workers,
                ahead=ahead,
                iterations=args.iterations,
                rollout_s=args.rollout_s,
                learner_s=args.learner_s,
                weights=weights,
                processes=args.processes,
            )
            rows.append(row)
            print(
                f"{row.workers:7}  {row.ahead!s:>5}  {row.efficiency:10.3f}  {row.iteration_s:7.3f}"
                f"  {row.learner_idle:12.2f}  {row.weight_copies:6}"
                f"  {row.weight_bytes_sent / row.weight_bytes:14.2f}  {row.driver_cpu_s:12.4f}",
                flush=True,
            )
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "workers")}
    result = {"machine": machine(), "settings": settings, "rows": [asdict(row) for row in rows]}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
