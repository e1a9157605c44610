"""The learner under Ray Train: placed on a cluster, restarted when it dies, alone or in a team."""

from __future__ import annotations

import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    UserCallback,
    get_context,
    report,
)
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sft_rl.config import LearnerConfig
from sft_rl.config.extensions import load_class
from sft_rl.distributed.board import Board
from sft_rl.distributed.secrets import receive_secrets
from sft_rl.distributed.team import TorchTeam
from sft_rl.errors import RunFailed, UserError, last_line
from sft_rl.learning.protocols import Notice, Observer, PassesOn, Silent
from sft_rl.learning.team import Team
from sft_rl.types import Metrics

POLL_S = 0.25
REPORT_S = 2.0
"""Seconds between two reports: each waits until Ray Train has looked at the one before."""
NUM_REPORTS = 20
"""How many of the newest are kept."""
END_S = 10.0
"""Seconds that Ray Train gets to note the last one."""

Work = Callable[[Team, Observer, Notice], None]
"""What every learner of a team runs."""


class _BoardObserver:
    """A run's observer in the leading learner."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def phase(self, name: str) -> None:
        self._board.tell.remote("phase", name)

    def warn(self, text: str) -> None:
        self._board.tell.remote("warn", text)

    def progress(self, done: int, total: int, metrics: Metrics) -> None:
        self._board.tell.remote("progress", done, total, metrics)


class _Reports(PassesOn):
    """An observer that also reports evaluations to Ray Train, and passes on what it is told.

    All learners of a team report together. Evaluations that follow each other too fast are left
    out, the last never. The checkpoint of a report is a pointer: it names the run's own.
    """

    def __init__(self, observer: Observer, job: _Job, team: Team) -> None:
        super().__init__(observer)
        self.job = job
        self.team = team
        self._last = -math.inf

    def progress(self, done: int, total: int, metrics: Metrics) -> None:
        super().progress(done, total, metrics)
        if self.job.distance not in metrics:
            return
        is_due = done == total or time.monotonic() - self._last > REPORT_S
        if self.team.leaders(is_due):
            with TemporaryDirectory() as folder:
                (Path(folder) / "run.json").write_text(json.dumps({"run": self.job.place}))
                pointer = Checkpoint.from_directory(folder) if self.team.leads else None
                report(metrics, checkpoint=pointer)
            self._last = time.monotonic()


class _BoardNotice:
    """The driver's notice; all learners of a team see it after the same iteration."""

    in_loop = False

    def __init__(self, board: Any, team: Team) -> None:
        self._stopped = board.stopped.remote()
        self._team = team

    @property
    def arrived(self) -> bool:
        return self._team.leaders(bool(ray.wait([self._stopped], timeout=0)[0]))


@dataclass(frozen=True)
class _Job:
    """What a Train worker gets.

    Attributes:
        work: Reference to what to run: Ray Train would copy it from process to process, weights
            and all.
        board: The driver's board.
        place: Path or URL of the run's folder.
        distance: A number that evaluations have, and other iterations have not.
        splits: Whether several learners split the networks.
    """

    work: Any
    board: Any
    place: str
    distance: str
    splits: bool


def run_on_train(
    work: Work,
    config: LearnerConfig,
    *,
    place: str,
    distance: str,
    observer: Observer,
    notice: Notice,
) -> None:
    """Run the learners under Ray Train, restarted when one dies; return when they are done.

    Evaluations are reported to Ray Train, but none of its checkpoints is used: `work` goes on from
    the run's own, so a restart loses what came after the newest of them, and a finished run ends at
    once.

    Args:
        work: What every learner runs. It must go on where it was interrupted.
        config: How many learners, what each may use, how often they are restarted.
        place: Path or URL of the run's folder, seen by all nodes; Ray Train's own state is in its
            ``ray/train``.
        distance: A number that evaluations have, and other iterations have not.
        observer: Is told what the leading learner tells.
        notice: When it arrives, the learners save and leave.

    Raises:
        UserError: The learner's own, because it died too often, or for callbacks that are none.
    """
    callbacks = [load_class("learner.callbacks", name, UserCallback) for name in config.callbacks]
    for module in {sys.modules[callback.__module__] for callback in callbacks}:
        cloudpickle.register_pickle_by_value(module)  # Ray Train's processes need not find it
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
    # A process of its own: Ctrl-C and SIGTERM stay ours, and it ends with us at any time.
    fit = ray.remote(_fit).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
    job = _Job(ray.put(work), board, place, distance, config.strategy == "fsdp")
    given_up = fit.remote(job, config, [callback() for callback in callbacks])
    if _follow(board, given_up, observer, notice):
        ray.wait([given_up], timeout=END_S)
        return
    try:
        ray.get(given_up)
    except RayError as error:
        raise RunFailed(
            f"learner: was lost more than learner.max_failures={config.max_failures} times, the "
            f"last time: {last_line(error)}; what was saved is kept, go on with --resume"
        ) from error


def _follow(board: Any, given_up: Any, observer: Observer, notice: Notice) -> bool:
    """Pass news on until the leading learner is done; return False if Ray Train gives up."""
    while True:
        ended = bool(ray.wait([given_up], timeout=POLL_S)[0])
        if notice.arrived:
            board.stop.remote()
        for kind, what in ray.get(board.news.remote()):
            if kind == "done":
                return True
            if kind == "failed":
                raise what[0]
            if kind == "phase":  # else there is nothing to save, and SIGTERM ends the run at once
                notice.in_loop = what == ("fine-tuning",)
            getattr(observer, kind)(*what)
        if ended:
            return False


def _fit(job: _Job, config: LearnerConfig, callbacks: list[UserCallback]) -> None:
    """Run the learners until they are done or Ray Train gives up."""
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"  # how soon deaths are seen
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths mean the driver's
    resources = {"CPU": config.num_cpus, "GPU": config.num_gpus}
    TorchTrainer(
        _learn,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if config.num_gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.num_gpus > 0,
            resources_per_worker={name: num for name, num in resources.items() if num},
            label_selector=config.labels or None,
        ),
        run_config=RunConfig(
            name="train",
            storage_path=f"{job.place}/ray",
            checkpoint_config=CheckpointConfig(num_to_keep=NUM_REPORTS),
            failure_config=FailureConfig(max_failures=config.max_failures),
            callbacks=callbacks,
        ),
    ).fit()


def _learn(given: dict[str, Any]) -> None:
    """What a Train worker runs. Its own errors are told and end the run; deaths are restarted."""
    job: _Job = given["job"]
    receive_secrets()
    alone = get_context().get_world_size() == 1
    team = Team() if alone else TorchTeam(splits=job.splits)
    observer = _Reports(_BoardObserver(job.board) if team.leads else Silent(), job, team)
    try:
        work: Work = ray.get(job.work)
        work(team, observer, _BoardNotice(job.board, team))
        if team.leads:
            ray.get(job.board.tell.remote("done"))
    except UserError as error:
        if team.leads:
            ray.get(job.board.tell.remote("failed", error))
    except Exception as error:
        if isinstance(error, RayError) or not alone:
            raise  # it may be the echo of another process's death
        traceback.print_exc()  # into the worker's log
        why = f"{type(error).__name__}: {last_line(error)}"
        ray.get(job.board.tell.remote("failed", RunFailed(f"learner: failed: {why}")))
