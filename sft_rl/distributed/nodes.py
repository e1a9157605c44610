"""What runs on the nodes of a cluster, compared before a job begins."""

from __future__ import annotations

import json
import math
import platform
from importlib.metadata import version
from typing import Any

import ray
from pyarrow.fs import FileType
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import sft_rl
from sft_rl.distributed.placement import Bundle, fits, without_autoscaler
from sft_rl.errors import UserError
from sft_rl.storage.urls import reach

ANSWER_S = 120.0
NODE_ID = "ray.io/node-id"
"""The label that every node has for itself."""


def versions() -> dict[str, str]:
    """Return the versions that all processes of a job must share.

    Builds of one torch, as 2.13.0+cpu on a head without GPUs, count as the same.
    """
    return {
        "Python": platform.python_version(),
        "Ray": ray.__version__,
        "torch": version("torch").split("+")[0],
        "sft_rl": sft_rl.__version__,
    }


def alive_nodes() -> list[dict[str, Any]]:
    """Return Ray's description of every node that is alive."""
    return [node for node in ray.nodes() if node["Alive"]]


def node_ids() -> frozenset[str]:
    """Return the nodes that are alive."""
    return frozenset(node["NodeID"] for node in alive_nodes())


def room() -> dict[str, Bundle]:
    """Return what each node has in all, by its name."""
    return {node_name(node): _has_in_all(node) for node in alive_nodes()}


def _has_in_all(node: dict[str, Any]) -> Bundle:
    resources, labels = node["Resources"], node["Labels"]
    return Bundle(
        resources.get("CPU", 0.0),
        resources.get("GPU", 0.0),
        {name: value for name, value in labels.items() if name != NODE_ID},
    )


def room_from_here() -> dict[str, Bundle]:
    """Return what actors that this process starts can have.

    A trial that brought a placement group must stay in it: what is free there is beside the
    trial's own bundle, the first. Of a cluster that may grow nothing is known.
    """
    group = ray.util.get_current_placement_group()
    if group is None:
        growing = Bundle(math.inf, math.inf)
        return room() if is_fixed() else {"a cluster that may grow": growing}
    bundles = [Bundle(b.get("CPU", 0.0), b.get("GPU", 0.0)) for b in group.bundle_specs[1:]]
    where = "of this trial's placement group, beside the trial's own,"
    return {f"bundle {i} {where}": b for i, b in enumerate(bundles, start=1)} or {
        "this trial's placement group, beside the trial's own bundle,": Bundle(0.0, 0.0)
    }


def is_fixed() -> bool:
    """Whether no autoscaler could add a node; see :func:`without_autoscaler`."""
    report = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or b"{}")
    return without_autoscaler((report.get("autoscaler_report") or {}).get("active_nodes") or ())


def node_name(node: dict[str, Any]) -> str:
    """Return what a node is called in messages."""
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"


def on_node(function: Any, node: dict[str, Any]) -> Any:
    """Return a function as a task that needs no CPU and runs on one node."""
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=there)


def check_shared(file: str, bundle: Bundle, *, field: str) -> None:
    """Refuse storage that a node does not see on which some of a run would read and write.

    Args:
        file: Path or URL of what is there already, a file or a folder.
        bundle: What those who need it ask for; nodes that could not hold them do not matter.
        field: Where the storage was named.

    Raises:
        UserError: Naming the node.
    """
    nodes = [n for n in alive_nodes() if fits([_has_in_all(n)], [bundle])]
    answers = [on_node(_sees, node).remote(file) for node in nodes]
    for node, answer in zip(nodes, answers, strict=True):
        if not ray.get(answer, timeout=ANSWER_S):
            raise UserError(
                f"{field}: node {node_name(node)} does not see {file}, and {bundle} of the run may "
                "be placed there; give storage that all nodes share, or labels of those that do"
            )


def _sees(place: str) -> bool:
    try:
        file_system, path = reach(place)
        return bool(file_system.get_file_info(path).type != FileType.NotFound)
    except (OSError, ValueError, ImportError):
        return False


def check_versions() -> None:
    """Compare every other node with this process.

    Raises:
        UserError: Naming the node and what differs, or the node that does not answer.
    """
    own = versions()
    others = [n for n in alive_nodes() if n["NodeID"] != ray.get_runtime_context().get_node_id()]
    answers = [on_node(versions, node).remote() for node in others]
    for node, answer in zip(others, answers, strict=True):
        name = f"node {node_name(node)}"
        try:
            theirs = ray.get(answer, timeout=ANSWER_S)
        except ray.exceptions.RayError as error:
            if node["NodeID"] not in {alive["NodeID"] for alive in alive_nodes()}:
                continue  # it was lost meanwhile
            reason = type(error).__name__
            raise UserError(f"ray.address: {name} cannot run the project: {reason}") from error
        for what, ours in own.items():
            if theirs[what] != ours:
                raise UserError(
                    f"ray.address: {name} has {what} {theirs[what]}, this process has {ours}; "
                    "give all nodes the same image"
                )
