"""A worker whose node is lost before it has started, again and again; run by test_chaos.py.

Takes a folder, how many nodes are lost and how many losses are too many; writes what was drawn.
"""

import os
import random
import sys
import time
from functools import partial
from pathlib import Path

from conftest import TINY
from real_cluster import wait_for

from benchmarks.nodes import started_nodes
from sft_rl.config import ResolvedConfig, RolloutConfig
from sft_rl.config.files import load_config
from sft_rl.distributed.session import set_local_environment
from sft_rl.jobs.build import build_runner
from sft_rl.policy import to_arrays
from sft_rl.rollout.runner import Request, RolloutRunner
from sft_rl.runs.resolve import resolve

SOON = {"period_ms": 500, "timeout_ms": 1000, "failure_threshold": 3}
"""How soon Ray misses a node."""


def held_up(config: ResolvedConfig, held: Path, starting: Path) -> RolloutRunner:
    """Start only when nobody holds it up."""
    starting.touch()
    while held.exists():
        time.sleep(0.05)
    return build_runner(config)


def main(folder: str, num_lost: str, too_many: str) -> None:
    os.environ |= {f"RAY_health_check_{name}": str(value) for name, value in SOON.items()}
    set_local_environment()
    from sft_rl.distributed import collector as collecting  # here: it imports Ray

    collecting.MAX_LOSSES = int(too_many)
    config, _ = resolve(load_config("swiss_roll", TINY))
    held, starting = Path(folder, "held"), Path(folder, "starting")
    held.touch()
    with started_nodes(1) as nodes:
        assert nodes is not None
        collecting.ray.init(nodes.address)
        make_runner = partial(held_up, config, held, starting)
        rollout = RolloutConfig(num_workers=1, num_cpus_per_worker=0.5)
        collector = collecting.RayCollector(make_runner, rollout, warn=lambda _: None)
        collector.submit(Request(0, 0, to_arrays(build_runner(config).policy), 2))
        for lost in range(1, int(num_lost) + 1):
            wait_for(starting.exists, every_s=0.05)
            starting.unlink()
            assert nodes.leave(random.Random(0))
            nodes.join()
            while collector.num_replaced < lost:
                collector._receive(timeout=1.0)
        held.unlink()
        drawn = len(list(collector.results()))
        Path(folder, "drawn").write_text(f"{drawn} shards, {collector.num_replaced} replaced")
        collector.close()
        collecting.ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
