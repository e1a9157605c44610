"""Ray's object store: how large that of a local Ray is, and whether one was too small."""

from __future__ import annotations

import math
import shutil

from sft_rl.config import RayConfig

LEAST_BYTES = 256 * 2**20
"""Of a local Ray's store; it takes memory only for what is in it."""


def store_bytes(config: RayConfig, objects: int) -> int:
    """Size of a local Ray's store: as set, or for some bytes of objects and what lies between."""
    if config.object_store_gb is not None:
        return int(config.object_store_gb * 2**30)
    return max(LEAST_BYTES, objects * 5 // 4)


def shared_memory() -> float:
    """Bytes free in shared memory; as much as one likes where there is no such thing."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return math.inf


def spilled_bytes() -> int:
    """Bytes of objects that the Ray of this process has moved to disks since it began."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    reply = get_memory_info_reply(state, timeout_seconds=10.0)
    return int(reply.store_stats.spilled_bytes_total)
