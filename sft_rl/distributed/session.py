"""Start Ray on this machine, closed to the outside, or join a cluster; stop what was started."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from sft_rl.config import Config, RayConfig, RolloutConfig
from sft_rl.errors import UserError

OBJECT_STORE_BYTES = 256 * 2**20


class RaySession:
    """A Ray that lives as long as the ``with`` block.

    Ray starts in the background, so that the caller can go on; :meth:`wait` is for those who
    need it. The thread that started Ray also stops it, and lives until then: Ray's processes are
    bound to the life of the thread that forked them. A local Ray listens on loopback only and
    asks for a token that nobody else knows.

    Args:
        config: Which cluster to join, or none to start a local Ray.
        rollout: What the workers will ask for.
    """

    def __init__(self, config: RayConfig, rollout: RolloutConfig) -> None:
        self.config = config
        self.rollout = rollout
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="ray-init")
        self._ready: Future[None] | None = None
        self._on_sigterm = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL

    def __enter__(self) -> RaySession:
        self._ready = self._executor.submit(self._start)
        return self

    def wait(self) -> None:
        """Return when Ray is ready.

        Raises:
            UserError: If the cluster cannot be reached or cannot hold the workers.
        """
        assert self._ready is not None, "use the session in a with block"
        self._ready.result()
        if threading.current_thread() is threading.main_thread():
            # Ray puts its own handler in front, which aborts the process 3 s after the signal.
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._executor.submit(_stop_ray).result()
        self._executor.shutdown()

    def _start(self) -> None:
        # A worker's error stops the run with one line; Ray would print those behind it, too.
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
        address = self.config.address or os.environ.get("RAY_ADDRESS")
        if address is None:
            self._start_local()
        else:
            self._join(address)

    def _start_local(self) -> None:
        set_local_environment()
        import ray

        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, 1),
            include_dashboard=False,
            dashboard_host="127.0.0.1",
            object_store_memory=OBJECT_STORE_BYTES,
            configure_logging=True,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )

    def _join(self, address: str) -> None:
        import ray

        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError) as error:
            raise UserError(
                f"ray.address: cannot join {address}: {str(error).splitlines()[0]}"
            ) from error
        from sft_rl.distributed.nodes import check_versions

        check_versions()


def set_local_environment() -> None:
    """Set what keeps a local Ray closed; Ray reads it once, when it is first imported."""
    environment = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # binds every socket to loopback
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    for name, value in environment.items():
        os.environ.setdefault(name, value)


def _stop_ray() -> None:
    import ray

    ray.shutdown()


def check_local_resources(config: Config) -> None:
    """Refuse more than this machine has, before a local Ray starts.

    Raises:
        UserError: Naming what was asked and what there is.
    """
    if config.ray.address is not None or os.environ.get("RAY_ADDRESS"):
        return
    import torch

    rollout, learner = config.rollout, config.learner
    cpus, gpus = os.cpu_count() or 1, torch.cuda.device_count()
    num = rollout.num_workers
    if learner.launcher == "ray_train":
        cpus_left = cpus - learner.num_workers * learner.num_cpus
        gpus -= int(learner.num_workers * learner.num_gpus)
        if cpus_left < 0 or gpus < 0:
            raise UserError(
                f"learner.num_workers: {learner.num_workers} learners with {learner.num_cpus:g} "
                f"CPUs and {learner.num_gpus:g} GPUs each need more than this machine has; set "
                "fewer, or a smaller learner.num_cpus"
            )
    else:
        cpus_left = cpus
    if num * rollout.num_cpus_per_worker > cpus_left:
        beside = "" if cpus_left == cpus else " beside the learners"
        raise UserError(
            f"rollout.num_workers: {num} workers with {rollout.num_cpus_per_worker:g} CPUs each "
            f"need more than this machine's {cpus}{beside}; "
            f"set rollout.num_cpus_per_worker={cpus_left / num:.2g} or fewer workers"
        )
    if num * rollout.num_gpus_per_worker > gpus:
        raise UserError(
            f"rollout.num_gpus_per_worker: {num} workers with {rollout.num_gpus_per_worker:g} "
            f"GPUs each asked for, this machine has {gpus}"
        )
