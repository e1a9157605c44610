"""Secrets of a job, from the process that was given them to its actors.

They travel in calls between processes: what an actor is made with, and the environment of a job,
is kept by Ray and shown to all who ask.
"""

from __future__ import annotations

import os
from typing import Any

import ray

from sft_rl.storage.secrets import NAMES

KEEPER = "sft-rl/secrets"


class Keeper:
    """Holds the values in memory, as long as the process that has lent them."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def keep(self, values: dict[str, str]) -> None:
        """Take the values."""
        self._values = values

    def values(self) -> dict[str, str]:
        """Return them."""
        return self._values


def lend_secrets() -> Any:
    """Hand the secrets of this job, if it has any, to who asks; return who keeps them."""
    names = [name for name in os.environ.get(NAMES, "").split(",") if name in os.environ]
    if not names:
        return None
    keeper = ray.remote(Keeper).options(name=KEEPER, num_cpus=0).remote()
    ray.get(keeper.keep.remote({name: os.environ[name] for name in names}))
    return keeper


def receive_secrets() -> None:
    """Put the secrets of this job, if it has any, into this process's environment."""
    if os.environ.get(NAMES):
        os.environ.update(ray.get(ray.get_actor(KEEPER).values.remote()))
