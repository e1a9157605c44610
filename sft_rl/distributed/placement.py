"""Whether a job finds room on the nodes that there are. Needs no Ray."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from sft_rl.config import LearnerConfig, RewardConfig, RolloutConfig
from sft_rl.errors import UserError


@dataclass(frozen=True)
class Bundle:
    """CPUs and GPUs that must be on one node, and the labels that it must have, or has."""

    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        amounts = [_count(self.cpus, "CPU")] if self.cpus or not self.gpus else []
        amounts += [_count(self.gpus, "GPU")] if self.gpus else []
        labels = f" labelled {_labels(self.labels)}" if self.labels else ""
        return " and ".join(amounts) + labels


NOTHING = Bundle(0.0, 0.0)

Nodes = Mapping[str, Bundle]
"""What each node has in all, by the node's name."""


@dataclass(frozen=True)
class Needs:
    """What a command needs where it runs.

    Attributes:
        files: Local files that it reads, relative to the current directory.
        rollout: Its workers, if it has any.
        check_trials: Refuses nodes that could never hold a trial; for a search only.
    """

    files: tuple[str, ...] = ()
    rollout: RolloutConfig | None = None
    check_trials: Callable[[Nodes], None] | None = None


def learner_bundle(config: LearnerConfig) -> Bundle:
    """Return what a learner asks for."""
    return Bundle(config.num_cpus, config.num_gpus, config.labels)


def worker_bundles(config: RolloutConfig) -> list[Bundle]:
    """Return what each rollout worker asks for."""
    each = Bundle(config.num_cpus_per_worker, config.num_gpus_per_worker, config.labels)
    return [each] * config.num_workers


def scorer_bundles(config: RewardConfig) -> list[Bundle]:
    """Return what each scorer asks for."""
    return [
        Bundle(term.num_cpus_per_scorer, term.num_gpus_per_scorer, term.labels)
        for term in config.terms
        if term.uses_ray
        for _ in range(term.num_scorers)
    ]


def run_bundles(
    learner: LearnerConfig, rollout: RolloutConfig, reward: RewardConfig
) -> list[Bundle]:
    """Return what a run asks for that Ray places as a whole: learner, workers, scorers."""
    return [learner_bundle(learner), *worker_bundles(rollout), *scorer_bundles(reward)]


def check_room(
    nodes: Nodes,
    learner: Bundle,
    rollout: RolloutConfig | None,
    reward: RewardConfig | None = None,
    *,
    num_learners: int = 1,
    field: str = "learner.num_cpus, learner.num_gpus",
) -> None:
    """Refuse a job that the nodes could not hold even if they were empty: it would wait for ever.

    Args:
        nodes: All nodes.
        learner: What a learner asks for; ``NOTHING`` if it runs where it is.
        rollout: The job's workers, if it has any.
        reward: The job's scorers, if it has any.
        num_learners: How many learners there are.
        field: Where the learner's wishes come from.

    Raises:
        UserError: With what was asked and what exists.
    """
    exists = described(nodes)
    for section, bundle in (
        ("learner", learner),
        *(("rollout", worker) for worker in (worker_bundles(rollout)[:1] if rollout else [])),
        *(("reward.terms", scorer) for scorer in (scorer_bundles(reward) if reward else [])),
    ):
        if bundle.labels and not any(_has(node.labels, bundle.labels) for node in nodes.values()):
            raise UserError(
                f"{section}.labels: no node is labelled {_labels(bundle.labels)}: {exists}"
            )
    if not fits(nodes.values(), [learner]):
        raise UserError(f"{field}: no node has the {learner} asked for: {exists}")
    learners = [learner] * num_learners
    if not fits(nodes.values(), learners):
        raise UserError(
            f"learner.num_workers: no room for {num_learners} learners with {learner} each: "
            f"{exists}; take fewer, or set learner.num_cpus or num_gpus lower"
        )
    workers = worker_bundles(rollout) if rollout else []
    if not fits(nodes.values(), [*learners, *workers]):
        beside = "" if learner == NOTHING else f" beside the learner's {learner}"
        raise UserError(
            f"rollout.num_workers: no room for {len(workers)} workers with {workers[0]} each"
            f"{beside}: {exists}; "
            "take fewer, or set rollout.num_cpus_per_worker or num_gpus_per_worker lower"
        )
    scorers = scorer_bundles(reward) if reward else []
    if not fits(nodes.values(), [*learners, *workers, *scorers]):
        raise UserError(
            f"reward.terms.num_scorers: no room for {len(scorers)} scorers beside the workers: "
            f"{exists}; take fewer, or set num_cpus_per_scorer or num_gpus_per_scorer lower"
        )


def described(nodes: Nodes) -> str:
    """What there is, for messages."""
    return "; ".join(f"{name} has {node}" for name, node in nodes.items()) or "there is no node"


def this_machine() -> Nodes:
    """Return what a Ray that is started here has."""
    import torch

    return {"this machine": Bundle(os.cpu_count() or 1, torch.cuda.device_count())}


def without_autoscaler(node_types: Iterable[str]) -> bool:
    """Whether no autoscaler could add a node: what does not fit now never will.

    Args:
        node_types: Types of the active nodes in Ray's report. A Ray without an autoscaler gives
            every node a type of its own, ``node_ID`` or, from its job server, ``nodeID``; one
            that reports nothing may have one.
    """
    types = list(node_types)
    return bool(types) and all(re.fullmatch(r"node_?[0-9a-fA-F]{32,}", name) for name in types)


def fits(nodes: Iterable[Bundle], bundles: Iterable[Bundle]) -> bool:
    """Whether nodes hold bundles at once: those with labels and GPUs first, on the fullest."""
    free = [([node.gpus, node.cpus], node.labels) for node in nodes]
    for bundle in sorted(bundles, key=lambda b: (-len(b.labels), -b.gpus, -b.cpus)):
        holding = [
            left
            for left, labels in free
            if left[0] >= bundle.gpus - 1e-6
            and left[1] >= bundle.cpus - 1e-6
            and _has(labels, bundle.labels)
        ]
        if not holding:
            return False
        fullest = min(holding)
        fullest[0] -= bundle.gpus
        fullest[1] -= bundle.cpus
    return True


def _has(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return wanted.items() <= labels.items()


def _labels(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in labels.items())


def _count(number: float, unit: str) -> str:
    return f"{number:g} {unit}{'' if number == 1 else 's'}"
