"""A tensor from actor to actor: by Ray's object store, and by its Direct Transport over gloo.

    python -m benchmarks.transport

Prints medians in milliseconds; every tensor arrives with the same bits. Direct Transport is alpha
in Ray 2.60: it wants actors at both ends, and an actor's method, not ``ray.put``, as the source.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import RESULTS, machine
from sft_rl.distributed.session import set_local_environment

set_local_environment()  # before Ray is imported, which reads it then

import ray  # noqa: E402
from ray.experimental.collective import create_collective_group  # noqa: E402

MEBIBYTES = (0.05, 1.0, 4.0, 16.0, 64.0)
REPEATS = 15
FLOAT = 4


class End:
    """Sends a tensor, or takes one."""

    def store(self, num: int) -> torch.Tensor:
        """Send it by the object store."""
        return torch.arange(num, dtype=torch.float32)

    @ray.method(tensor_transport="gloo")  # type: ignore[untyped-decorator]
    def direct(self, num: int) -> torch.Tensor:
        """Send it by Direct Transport."""
        return torch.arange(num, dtype=torch.float32)

    def take(self, tensor: torch.Tensor) -> tuple[int, bool]:
        """Say what came, and whether every bit is right."""
        right = torch.arange(len(tensor), dtype=torch.float32)
        return len(tensor), torch.equal(tensor, right)


def measured() -> Iterator[tuple[float, dict[str, float]]]:
    """Milliseconds of a tensor's way, by transport, for each size in MiB."""
    actor: Any = ray.remote(End)
    ends = [actor.options(num_cpus=0.5).remote() for _ in range(2)]
    sender, taker = ends
    create_collective_group(ends, backend="torch_gloo")
    for size in MEBIBYTES:
        num, took = int(size * 2**20 / FLOAT), {}
        for name in ("store", "direct"):
            seconds = []
            for _ in range(REPEATS):
                begun = time.perf_counter()
                came = ray.get(taker.take.remote(getattr(sender, name).remote(num)))
                seconds.append(time.perf_counter() - begun)
                assert came == (num, True), came
            took[name] = 1000 * statistics.median(seconds)
        yield size, took


def main() -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    ray.init("local", num_cpus=2, include_dashboard=False)
    rows = dict(measured())
    ray.shutdown()
    print("| MiB | object store, ms | Direct Transport, ms |\n|---|---|---|")
    for size, took in rows.items():
        print(f"| {size:g} | {took['store']:.1f} | {took['direct']:.1f} |")
    content = {"machine": machine(), "repeats": REPEATS, "milliseconds": rows}
    (args.results / "transport.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
