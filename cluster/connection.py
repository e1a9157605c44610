"""The way to a cluster's job server: its address, its token, and what it says when it refuses."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from sft_rl.distributed.placement import without_autoscaler
from sft_rl.distributed.session import reach_loopback_directly
from sft_rl.errors import UserError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
CONNECT_TIMEOUT_S = 5.0
OLDEST_RAY, NEWEST_RAY = (2, 60), (3, 0)

Client = Any
"""A ``ray.job_submission.JobSubmissionClient``; Ray has no types to check against."""
Job = Any
"""A ``ray.job_submission.JobDetails``."""


class ClusterError(UserError):
    """The cluster cannot be reached, refuses us, or runs what does not fit; nothing was started."""

    exit_code = 3


def connect(address: str | None) -> Client:
    """Connect to the job server, with the token that Ray finds.

    Args:
        address: As ``http://HOST:8265``; by default that of the environment, or this machine's.

    Raises:
        UserError: The address is not one of a job server.
        ClusterError: Nobody answers there, the token is refused, or Ray's version does not fit.
    """
    url = job_server(address)
    reach_loopback_directly()
    os.environ[ADDRESS_VARIABLES[0]] = url  # Ray prefers it to the address that it is given
    logging.disable(logging.INFO)  # Ray's client reports every upload and every closed socket
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        reason = error.strerror or "no answer"
        raise ClusterError(
            f"--address: no cluster at {url}: {reason}; "
            "start one, or forward its dashboard's port (see docs/cluster.md)"
        ) from None
    with explained(url):
        from ray.job_submission import JobSubmissionClient

        client = JobSubmissionClient(url)
        version = str(client._do_request("GET", "/api/version").json()["ray_version"])
        number = tuple(int(part) for part in version.split(".")[:2])
    if not OLDEST_RAY <= number < NEWEST_RAY:
        raise ClusterError(
            f"--address: the cluster at {url} runs Ray {version}; "
            "allowed: 2.60 or later, below 3 (docs/cluster.md renders an image that fits)"
        )
    return client


def given_address(address: str | None) -> str | None:
    """Return the address as given, or from the environment if it is that of a job server."""
    found = (os.environ.get(name, "") for name in ADDRESS_VARIABLES)
    return address or next((value for value in found if value.startswith("http")), None)


def job_server(address: str | None) -> str:
    """Return the address of the job server: as given, from the environment, or this machine's.

    Raises:
        UserError: It is an address, but not of a job server.
    """
    address = given_address(address) or DEFAULT_ADDRESS
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        usable = False
    if not usable or parts.username or parts.password:
        shown = "an address with a password" if "@" in address else repr(address)
        raise UserError(
            f"--address: got {shown}; allowed: the job server, as http://HOST:8265 "
            "(not ray://, and the token comes from RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token)"
        )
    return url


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what the client raises into one line about the cluster at `url`."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        refused = "the token is wrong" if "failed" in str(error) else "a token is needed"
        raise ClusterError(
            f"token: the cluster at {url} refused: {refused}; put the cluster's token into a file "
            "with mode 0600, at ~/.ray/auth_token or named by RAY_AUTH_TOKEN_PATH"
        ) from None
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ClusterError(f"--address: the job server at {url} did not do it: {first}") from None


def alive_nodes(client: Client) -> list[dict[str, Any]]:
    """Return the nodes that are alive: ``node_id``, ``node_ip``, ``resources_total`` and more."""
    with explained(client.get_address()):
        answer = client._do_request("GET", "/api/v0/nodes?detail=true&limit=10000").json()
    nodes: list[dict[str, Any]] = answer["data"]["result"]["result"]
    return [node for node in nodes if node["state"] == "ALIVE"]


def is_fixed(client: Client) -> bool:
    """Whether no autoscaler could add a node; see :func:`without_autoscaler`."""
    with explained(client.get_address()):
        answer = client._do_request("GET", "/api/cluster_status").json()
    report = (answer["data"].get("clusterStatus") or {}).get("autoscalerReport") or {}
    return without_autoscaler(report.get("activeNodes") or ())
