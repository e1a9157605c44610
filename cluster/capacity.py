"""Whether a job finds room on the nodes that there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sft_rl.config import RolloutConfig
from sft_rl.errors import UserError


@dataclass(frozen=True)
class Bundle:
    """CPUs and GPUs that must be on one node."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        gpus = f" and {_count(self.gpus, 'GPU')}" if self.gpus else ""
        return _count(self.cpus, "CPU") + gpus


def check_capacity(
    nodes: Mapping[str, Bundle], learner: Bundle, rollout: RolloutConfig | None
) -> None:
    """Refuse a job that the cluster could not hold even if it were empty.

    Args:
        nodes: What each node has in all, by the node's name.
        learner: What the job's own process asks for.
        rollout: The job's workers, if it has any.

    Raises:
        UserError: With what was asked and what exists.
    """
    exists = "; ".join(f"{name} has {node}" for name, node in nodes.items()) or "there is no node"
    if not _fit(nodes.values(), [learner]):
        raise UserError(f"--cpus, --gpus: no node has the {learner} asked for: {exists}")
    if rollout is None or rollout.num_workers == 0:
        return
    worker = Bundle(rollout.num_cpus_per_worker, rollout.num_gpus_per_worker)
    if not _fit(nodes.values(), [learner, *[worker] * rollout.num_workers]):
        raise UserError(
            f"rollout.num_workers: no room for {rollout.num_workers} workers with {worker} each "
            f"beside the learner's {learner}: {exists}"
        )


def _fit(nodes: Iterable[Bundle], bundles: Iterable[Bundle]) -> bool:
    """Place the bundles, those with GPUs first, each on the fullest node that holds it."""
    free = [[node.gpus, node.cpus] for node in nodes]
    for bundle in sorted(bundles, key=lambda b: (-b.gpus, -b.cpus)):
        holding = [n for n in free if n[0] >= bundle.gpus - 1e-6 and n[1] >= bundle.cpus - 1e-6]
        if not holding:
            return False
        node = min(holding)
        node[0] -= bundle.gpus
        node[1] -= bundle.cpus
    return True


def _count(number: float, unit: str) -> str:
    return f"{number:g} {unit}{'' if number == 1 else 's'}"
