"""A Ray cluster on this machine whose nodes come and go."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

MOST_NODES = 3


class Nodes:
    """A Ray cluster on this machine: a head, and nodes that can be lost."""

    def __init__(self, num: int) -> None:
        from ray.cluster_utils import Cluster

        own = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
        head = {**own, "num_cpus": 0, "include_dashboard": False}
        self._own = own
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes = [self._cluster.add_node(**own) for _ in range(num)]

    @property
    def address(self) -> str:
        """Where to join."""
        return str(self._cluster.address)

    def leave(self, source: random.Random) -> bool:
        """Kill one node's processes; return whether there was one."""
        if self._nodes:
            victim = self._nodes.pop(source.randrange(len(self._nodes)))
            self._cluster.remove_node(victim, allow_graceful=False)
            return True
        return False

    def join(self) -> bool:
        """Start another node, unless there are enough; return whether one was started."""
        if len(self._nodes) < MOST_NODES:
            self._nodes.append(self._cluster.add_node(**self._own))
            return True
        return False

    def close(self) -> None:
        """Stop all nodes."""
        self._cluster.shutdown()


@contextmanager
def started_nodes(num: int) -> Iterator[Nodes | None]:
    """Start a cluster, if nodes are asked for."""
    nodes = Nodes(num) if num else None
    try:
        yield nodes
    finally:
        if nodes is not None:
            nodes.close()
