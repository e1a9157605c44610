"""What a trial asks for, and whether the machines can ever give it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from sft_rl.config import Config
from sft_rl.errors import UserError

Bundle = dict[str, float]


def bundles(config: Config) -> list[Bundle]:
    """Return a trial's placement group: the learner, then each rollout worker."""
    learner = {"CPU": config.learner.num_cpus, "GPU": config.learner.num_gpus}
    worker = {
        "CPU": config.rollout.num_cpus_per_worker,
        "GPU": config.rollout.num_gpus_per_worker,
    }
    return [
        {name: amount for name, amount in bundle.items() if amount > 0}
        for bundle in (learner, *[worker] * config.rollout.num_workers)
    ]


def this_machine() -> list[Bundle]:
    """Return what a Ray started here has."""
    import torch

    return [{"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}]


def cluster() -> list[Bundle]:
    """Return what each live node of the joined Ray has."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def refuse_if_too_large(asked: Sequence[Bundle], nodes: Sequence[Bundle]) -> None:
    """Refuse a trial that no empty cluster of these nodes could hold: it would wait for ever.

    Bundles are placed the largest first, each on the first node with room.

    Raises:
        UserError: Saying what was asked and what there is.
    """
    free = [dict(node) for node in nodes]
    for bundle in sorted(asked, key=lambda b: sorted(b.items(), reverse=True), reverse=True):
        room = [node for node in free if all(node.get(k, 0) >= v for k, v in bundle.items())]
        if not room:
            raise UserError(
                f"rollout.num_workers: a trial asks for {_total(asked)} (learner and "
                f"{len(asked) - 1} workers), there is {_total(nodes)} on {len(nodes)} node(s); set "
                "rollout.num_workers, rollout.num_cpus_per_worker or learner.num_cpus lower"
            )
        for name, amount in bundle.items():
            room[0][name] -= amount


def _total(bundles: Sequence[Bundle]) -> str:
    sums = {name: sum(b.get(name, 0.0) for b in bundles) for name in ("CPU", "GPU")}
    return " and ".join(f"{amount:g} {name}s" for name, amount in sums.items())
