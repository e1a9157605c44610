"""Values for a job that no list of Ray's, log or file ever holds: `sft-rl submit --secret NAME`.

A job's command, environment and metadata are open to all who may ask the job server. So values go
into the memory of the head, by the door for packages, and the job takes them out as it starts:
``python -m cluster.secrets KEY train …`` runs there. Its actors ask it for them; see
:mod:`sft_rl.distributed.secrets`.
"""

from __future__ import annotations

import json
import os
import runpy
import secrets
import sys
from collections.abc import Iterable, Mapping

from cluster.connection import Client, explained
from cluster.follow import NOT_STARTED
from sft_rl.errors import UserError

MARGIN = " " * 64
"""What the values begin with: Ray quotes the beginning of what it cannot keep."""


def values_of(names: Iterable[str], others: Mapping[str, str]) -> dict[str, str]:
    """Return the values of this process's environment variables.

    Args:
        names: Of the variables.
        others: Variables that the job gets in another way.

    Raises:
        UserError: One is not there, is Ray's or this project's own, or comes in both ways.
    """
    for name in names:
        if not os.environ.get(name):
            raise UserError(f"--secret: got {name!r}, which is no variable of this environment")
        if name.startswith(("RAY_", "SFT_RL_")) or name in others:
            why = "env_vars of --env have it, too" if name in others else "it is the nodes' own"
            raise UserError(f"--secret: got {name}; {why}; leave it out")
    return {name: os.environ[name] for name in names}


def hand_over(client: Client, values: Mapping[str, str]) -> str:
    """Put values, if there are any, into the head's memory; return the key to them."""
    key = f"_sft_rl_{secrets.token_hex(16)}.zip"
    if values:
        _put(client, key, (MARGIN + json.dumps(dict(values))).encode())
    return key


def withdraw(client: Client, key: str) -> None:
    """Overwrite the values of a job that has ended, if it never took them."""
    with explained(client.get_address()):
        is_there = client._package_exists(f"gcs://{key}")
    if is_there:
        _put(client, key, b"")


def take(key: str) -> dict[str, str]:
    """Return a job's values, and leave none behind; called once, on the cluster."""
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    head = GcsClient(address=canonicalize_bootstrap_address_or_die(None))
    place = f"gcs://{key}".encode()
    content = head.internal_kv_get(place, None)
    if not content:
        sys.stderr.write("sft-rl: --secret: the values are not there; submit the job again\n")
        sys.exit(NOT_STARTED)
    head.internal_kv_del(place, False, None)
    values: dict[str, str] = json.loads(content)
    return values


def _put(client: Client, key: str, content: bytes) -> None:
    with explained(client.get_address()):
        answer = client._do_request("PUT", f"/api/packages/gcs/{key}", data=content)
        if not answer.ok:
            raise RuntimeError(
                f"it did not take the values of --secret (HTTP {answer.status_code})"
            )


if __name__ == "__main__":
    os.environ.update(take(sys.argv.pop(1)))
    runpy.run_module("sft_rl", run_name="__main__", alter_sys=True)
