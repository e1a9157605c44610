"""Actors that people find: by name in Ray's lists, on the nodes that were asked for."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import ray


def start_actor(
    kind: type,
    *arguments: Any,
    name: str,
    num_cpus: float,
    num_gpus: float,
    strategy: str,
    labels: Mapping[str, str],
) -> Any:
    """Start an actor.

    Names are unique among the living of a job: one whose namesake is still dying, or belongs to
    another run of the same name, gets a suffix.

    Args:
        kind: Its class.
        arguments: Of its constructor.
        name: As ``sft-rl/RUN/rollout-3``, for ``ray list actors`` and the dashboard.
        num_cpus: Logical CPUs, may be fractional.
        num_gpus: GPUs, may be fractional.
        strategy: How actors are spread; a trial of a search brings its own placement group, which
            they must stay in.
        labels: Labels that its node must have.
    """
    in_group = ray.get_runtime_context().should_capture_child_tasks_in_placement_group
    options = {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "scheduling_strategy": None if in_group else strategy,
        "label_selector": None if in_group else dict(labels) or None,
    }
    actor = ray.remote(kind)
    try:
        return actor.options(name=name, **options).remote(*arguments)
    except ValueError:  # the name is taken
        return actor.options(name=f"{name}-{secrets.token_hex(2)}", **options).remote(*arguments)
