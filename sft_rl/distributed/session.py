"""Start Ray on this machine, closed to the outside, or join a cluster; stop what was started."""

from __future__ import annotations

import logging
import math
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from sft_rl.config import LearnerConfig, RayConfig, RewardConfig, RolloutConfig
from sft_rl.distributed.object_store import shared_memory, spilled_bytes, store_bytes
from sft_rl.distributed.placement import NOTHING, check_room, learner_bundle, this_machine
from sft_rl.errors import RunFailed, UserError, first_line, last_line

CONNECT_S = 5.0
MOST_CHARACTERS = 20
"""Of the folder for temporary files; Ray adds up to 80 to it for a socket's path."""
ITS_TOKEN = "is its token in ~/.ray/auth_token, or named by RAY_AUTH_TOKEN_PATH?"
ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
NO_PROXY = ("no_proxy", "NO_PROXY")


class RaySession:
    """A Ray for the ``with`` block: one that runs already, one that is joined, or one of its own.

    A Ray that this process is part of already, as its driver or in a task, an actor or a trial, is
    used as it is and never stopped. Else Ray starts in the background, so that the caller can go
    on; :meth:`wait` is for those who need it. The thread that started Ray also stops it, and lives
    until then: Ray's processes are bound to the life of the thread that forked them. A local Ray
    listens on loopback only and asks for a token that nobody else knows.

    Args:
        config: Which cluster to join, or none to start a local Ray.
        rollout: What the workers will ask for.
        objects: Bytes of objects that are there at the same time, for a local Ray.
        warn: Is told what makes a Ray slow.
    """

    def __init__(
        self,
        config: RayConfig,
        rollout: RolloutConfig,
        *,
        objects: int = 0,
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.config = config
        self.objects = objects
        self.rollout = rollout
        self.warn = warn
        self._folder: TemporaryDirectory[str] | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="ray-init")
        self._ready: Future[None] | None = None
        self._is_ours = not is_running()
        self._spilled = math.inf  # bytes, before it was ours to use
        self._keeper: Any = None  # lives as long as somebody refers to it
        self._environment: dict[str, str] = {}
        self._on_sigterm = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL

    @property
    def joins(self) -> bool:
        """Whether it joins a cluster."""
        return self._is_ours and cluster_address(self.config) is not None

    @property
    def exports(self) -> bool:
        """Whether the run's metrics are Ray's, too: of any Ray but a bare one of its own."""
        return not self._is_ours or self.joins or self.config.dashboard

    def __enter__(self) -> RaySession:
        self._environment = dict(os.environ)
        self._ready = self._executor.submit(self._start if self._is_ours else lambda: None)
        return self

    def wait(self) -> None:
        """Return when Ray is ready.

        Raises:
            UserError: If the cluster cannot be reached or cannot hold the workers.
        """
        assert self._ready is not None, "use the session in a with block"
        self._ready.result()
        self._spilled = min(self._spilled, spilled_bytes())
        if threading.current_thread() is threading.main_thread():
            # Ray puts its own handler in front, which aborts the process 3 s after the signal.
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._say_what_was_spilled()
        if self._is_ours:
            self._executor.submit(_stop_ray).result()
        self._executor.shutdown()
        if self._folder is not None:
            self._folder.cleanup()
        # What Ray, and what was set for it, has left in the environment; nothing of others.
        for name in os.environ.keys() | self._environment.keys():
            if name.startswith("RAY_") or name in ("PYTHONBREAKPOINT", *NO_PROXY):
                if name in self._environment:
                    os.environ[name] = self._environment[name]
                else:
                    del os.environ[name]
        if error is not None and is_from_ray(error):
            raise RunFailed(f"ray: {type(error).__name__}: {last_line(error)}") from error

    def _say_what_was_spilled(self) -> None:
        if not is_running() or math.isinf(self._spilled):
            return
        try:
            spilled = spilled_bytes() - self._spilled
        except Exception:  # whatever ended Ray is told by what it ended
            return
        if spilled > 0:
            self.warn(
                f"ray: {spilled / 2**20:.0f} MiB of objects went through the disk, which is slow; "
                "give them more memory: ray.object_store_gb, or on a cluster `ray start "
                "--object-store-memory`"
            )

    def _start(self) -> None:
        # A worker's error stops the run with one line; Ray would print those behind it, too.
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
        address = cluster_address(self.config)
        if address is None:
            self._start_local()
        else:
            self._join(address)

    def _start_local(self) -> None:
        closed = "RAY_AUTH_MODE" in os.environ or _local_environment is not None
        if "ray" in sys.modules and not closed:
            raise UserError(
                "ray: imported before its settings were there, so it would ask nobody for a token; "
                "call ray.init() yourself, and that Ray is used, or "
                "sft_rl.distributed.session.set_local_environment() before `import ray`"
            )
        set_local_environment()
        os.environ.pop("RAY_ADDRESS", None)  # empty, or a job server's
        self._folder = _private_folder()
        size = store_bytes(self.config, self.objects)
        if (free := shared_memory()) < size:
            self.warn(
                f"ray: /dev/shm has {free // 2**20} MiB, fewer than {size // 2**20}: "
                "trajectories go through files, which is slower; docker run --shm-size sets it"
            )
        import ray

        try:
            ray.init(
                address="local",
                _temp_dir=f"{self._folder.name}/ray",
                num_cpus=max(os.cpu_count() or 1, 1),
                include_dashboard=self.config.dashboard,
                dashboard_host="127.0.0.1",
                object_store_memory=size,
                configure_logging=True,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        except Exception as error:  # of no type of its own when a busy machine is too slow
            raise RunFailed(f"ray: could not start: {last_line(error)}") from error

    def _join(self, address: str) -> None:
        use_own_token()
        import ray

        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError) as error:
            raise UserError(
                f"ray.address: cannot join {address}: {first_line(error)}; {ITS_TOKEN}"
            ) from error
        from sft_rl.distributed.nodes import check_versions, is_fixed, room
        from sft_rl.distributed.secrets import lend_secrets

        self._keeper = lend_secrets()
        check_versions()
        if is_fixed():
            check_room(room(), NOTHING, self.rollout)


def cluster_address(config: RayConfig) -> str | None:
    """The cluster to join, if any: as set, or `RAY_ADDRESS`, unless that is a job server's."""
    there = os.environ.get("RAY_ADDRESS", "").strip()
    return config.address or (there if there and "://" not in there else None)


def is_from_ray(error: BaseException) -> bool:
    """Whether an error is one of Ray's own: a lost node, a full object store or disk."""
    exceptions = sys.modules.get("ray.exceptions")
    return exceptions is not None and isinstance(error, exceptions.RayError)


def _private_folder() -> TemporaryDirectory[str]:
    """A folder for a local Ray, for this user only: Ray opens its own to everybody.

    Sockets are in it, whose paths have 107 characters at most, and Ray's processes are started
    with its name unquoted.
    """
    usual = tempfile.gettempdir()
    base = usual if len(usual) <= MOST_CHARACTERS and not re.search(r"\s", usual) else "/tmp"
    return TemporaryDirectory(prefix="sft-rl-", dir=base, ignore_cleanup_errors=True)


_local_environment: dict[str, str] | None = None


def set_local_environment() -> None:
    """Set what keeps a local Ray closed and lean; Ray reads it once, when it is first imported.

    So all local Rays of a process get the same.
    """
    global _local_environment
    _local_environment = _local_environment or {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # binds every socket to loopback
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_task_events_report_interval_ms": "0",  # a history of every call, which grows
        "RAY_worker_niceness": "0",  # else anything busy beside it would starve the workers
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    for name, value in _local_environment.items():
        os.environ.setdefault(name, value)
    reach_loopback_directly()


def reach_loopback_directly() -> None:
    """Keep what goes to this machine away from a proxy."""
    for name in NO_PROXY:
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join(dict.fromkeys([*hosts, "127.0.0.1", "localhost"]))


def use_own_token() -> None:
    """Send this user's token to a cluster that is joined; Ray does not, unless it is told to."""
    if own_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def own_token() -> str:
    """This user's token, from where Ray takes it; empty if there is none."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    file = os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
    try:
        return Path(file).expanduser().read_text().strip()
    except (OSError, ValueError):
        return ""


def is_running() -> bool:
    """Whether this process is part of a Ray: as its driver, or in a task, an actor or a trial."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _stop_ray() -> None:
    import ray

    ray.shutdown()


def check_ray(
    ray: RayConfig,
    rollout: RolloutConfig,
    learner: LearnerConfig,
    reward: RewardConfig | None = None,
) -> None:
    """Refuse an address that is none, or more than there is, before Ray starts.

    Raises:
        UserError: Naming what was asked and what is allowed, or what there is.
    """
    address = cluster_address(ray)
    if is_running() or address is None:
        nodes = this_machine()
        if is_running():
            from sft_rl.distributed.nodes import room_from_here

            nodes = room_from_here()
        placed = learner_bundle(learner) if learner.launcher == "ray_train" else NOTHING
        check_room(nodes, placed, rollout, reward, num_learners=learner.num_workers)
    elif address != "auto" and not re.fullmatch(r"[^:/\s]+:\d{1,5}|\[[\w:]+\]:\d{1,5}", address):
        raise UserError(
            f"ray.address: got {address!r}; allowed: auto, or HOST:6379 of a cluster that this "
            "machine is part of; `sft-rl submit` sends a job to a cluster from outside"
        )
    elif address != "auto":
        _check_listens(address)
        _check_token(address)


def _check_listens(address: str) -> None:
    """Refuse an address where nobody listens; Ray would try for a minute and more.

    Raises:
        UserError: With the reason that the system gives.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        reason = error.strerror or "no answer"
        raise UserError(f"ray.address: no cluster at {address}: {reason}") from None


def _check_token(address: str) -> None:
    """Refuse a token that the cluster does not take; Ray's client would try for half a minute.

    Raises:
        UserError: If it takes no token of this user's.
    """
    import grpc

    token = own_token()
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(ALIVE)(b"", timeout=CONNECT_S, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                return  # whatever else is wrong, Ray itself says
            reason = "its token is another" if token else "it asks for a token"
            raise UserError(f"ray.address: cannot join {address}: {reason}; {ITS_TOKEN}") from None
