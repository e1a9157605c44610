"""A run's folder: settings, numbers, checkpoints and pictures."""

from __future__ import annotations

import io
import json
import math
import os
import shlex
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

import sft_rl
from sft_rl.config import CRITIC, ResolvedConfig
from sft_rl.config.files import dump_config, load_resolved
from sft_rl.errors import UserError, first_line, last_line
from sft_rl.learning.learner import Learner
from sft_rl.policy import DenoisingPolicy
from sft_rl.runs.base import BASE, keep_base, kept_base
from sft_rl.runs.changes import changes
from sft_rl.runs.checkpoints import checkpoints, newest
from sft_rl.runs.parts import algorithm_of, network_of, policy_of
from sft_rl.storage import checkpoint
from sft_rl.storage.checkpoint import Checkpoint, TensorGroups
from sft_rl.storage.events import EventLog
from sft_rl.storage.files import check_unused, read_regular, replace_file, saving
from sft_rl.storage.locks import Locked, lock
from sft_rl.storage.metrics_log import MetricsLog
from sft_rl.types import Metrics

if TYPE_CHECKING:
    import pandas as pd


class RunFolder:
    """Reads and writes the folder of one run.

    Args:
        path: The folder; it exists.
        config: The run's resolved configuration.
        warn: Takes what a person should know, such as a damaged checkpoint.
    """

    def __init__(
        self, path: Path, config: ResolvedConfig, *, warn: Callable[[str], None] = warnings.warn
    ) -> None:
        self.path = path
        self.place = str(path)  # for people
        self.lock_folder = path
        self.config = config
        self.warn = warn
        self._metrics = MetricsLog(path / "metrics.csv", sparse=self._sparse_columns)
        self._events = EventLog(path / "tensorboard")

    @property
    def absolute_place(self) -> str:
        """The path or URL by which other processes find the folder."""
        return str(self.path.resolve())

    @staticmethod
    def holds_run(path: Path) -> bool:
        """Whether there is a run in a folder, finished or not."""
        return os.path.isfile(path / "config.yaml")  # False of a name that is too long, too

    @staticmethod
    def create(path: Path, config: ResolvedConfig, *, beside: tuple[str, ...] = ()) -> RunFolder:
        """Make the folder of a new run.

        Args:
            path: Where.
            config: The run's configuration.
            beside: Files that whoever calls has put there.

        Raises:
            UserError: If it holds a run or other files already, or cannot be written.
        """
        store = RunFolder(path, config)
        store.begin(beside=beside)
        return store

    def begin(self, *, beside: tuple[str, ...] = ()) -> None:
        """Make the folder of a new run; see :meth:`create`."""
        self._refuse_a_run()
        self._refuse_others_files(beside)
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            if self.config.training.plots:
                (self.path / "plots").mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"--out: cannot write to {self.place}: {error.strerror}") from error
        with self.lock():
            self._refuse_a_run()  # another process may have been faster
            self.config = self.config.model_copy(update={"run_id": uuid.uuid4().hex})
            self._write_config()

    def _refuse_others_files(self, beside: tuple[str, ...]) -> None:
        check_unused(self.path, leftovers=(".lock", *beside))

    def _refuse_a_run(self) -> None:
        if self.holds_run(self.path):
            raise UserError(
                f"--out: {self.place} already holds a run; add --resume to go on with it, choose "
                f"another folder, or remove it first (rm -r {shlex.quote(self.place)}) to replace "
                "it"
            )

    def abandon(self) -> None:
        """Take back the folder of a new run that failed before its first iteration."""
        if checkpoints(self.path) or (self.path / "metrics.csv").exists():
            return
        shutil.rmtree(self.path / BASE, ignore_errors=True)
        for name in ("config.yaml", ".lock"):
            (self.path / name).unlink(missing_ok=True)
        for folder in (self.path / "checkpoints", self.path / "plots", self.path):
            with suppress(OSError):  # of what holds anything else
                folder.rmdir()

    def _write_config(self) -> None:
        replace_file(self.path / "config.yaml", dump_config(self.config).encode())

    @staticmethod
    def open(path: Path) -> RunFolder:
        """Open the folder of an existing run.

        Raises:
            UserError: If there is no run in it.
        """
        if not RunFolder.holds_run(path):
            raise UserError(f"run: {path} holds no run (no config.yaml in it)")
        return RunFolder(path, load_resolved(str(path / "config.yaml")))

    @contextmanager
    def lock(self, name: str = ".lock", *, patience_s: float = 0.0) -> Iterator[None]:
        """Keep other processes out of the folder; a dead process leaves no lock behind.

        Args:
            name: File of the lock.
            patience_s: How long to wait for a process that is about to die.

        Raises:
            UserError: Naming the process that works on the run.
        """
        with ExitStack() as stack:
            try:
                file = self.lock_folder / name
                stack.enter_context(lock(file, patience_s=patience_s, warn=self.warn))
            except OSError as error:
                raise UserError(f"--out: cannot write to {self.place}: {error.strerror}") from error
            except Locked as error:
                raise UserError(f"--out: {self.place} is in use by {error}") from error
            yield

    def log(self, row: Metrics) -> None:
        """Append one iteration's numbers to metrics.csv, and at evaluations to the events."""
        self._metrics.append(row)
        self._events.add_row(row)
        if self.config.distance in row:
            self._events.write()

    def show(self, picture: np.ndarray, *, iteration: int) -> None:
        """Keep a picture in ``samples/`` and for TensorBoard."""
        from PIL import Image

        file = self.path / "samples" / f"iteration-{iteration:06d}.png"
        with saving(file):
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(picture).save(file)
        self._events.add_picture(iteration, picture)

    def _sparse_columns(self) -> list[str]:
        """Columns that only iterations with an evaluation fill.

        Asked for where a run is written: to read one imports no algorithm of the user's.
        """
        names = [*self.config.watched, "critic_slope", "kl_to_pretrained"]
        if not self.config.reward.is_critic_alone:
            rewards = (t for t in self.config.reward.terms if t.use != CRITIC)
            names += ["objective", *(f"validation_{term.name}" for term in rewards)]
        each_step = ["log_prob_drift"]
        if algorithm_of(self.config).baseline != "none":
            names += ["policy_grad_snr", "policy_grad_snr_raw"]
            each_step.append("explained_variance")
        num_steps = self.config.sampler.num_steps
        return [*names, *(f"{name}_{k}" for name in each_step for k in range(num_steps))]

    def note(self, name: str, line: str) -> None:
        """Add a line to a text file of the folder."""
        with (self.path / name).open("a") as file:
            file.write(f"{line}\n")

    def keep_base(self, network: nn.Module) -> None:
        """Keep the network that an adapter is on, once: checkpoints hold the adapter alone."""
        keep_base(self.path, network)

    def save(self, learner: Learner, *, iteration: int) -> None:
        """Save a checkpoint, which holds the best policy, too; drop those beyond the newest N."""
        meta = {
            "iteration": iteration,
            "version": learner.version,
            "sft_rl": sft_rl.__version__,
            "config": self.config.model_dump(mode="json"),
            "best_loss": learner.best_loss if learner.best_loss < math.inf else None,
        }
        self._metrics.sync()
        self._events.write()
        folder = self.path / "checkpoints"
        checkpoint.save(folder / f"{iteration:06d}", Checkpoint(learner.state(), meta))
        for old in checkpoints(self.path)[: -self.config.training.keep_checkpoints]:
            shutil.rmtree(old)

    def resume(self, config: ResolvedConfig) -> Checkpoint | None:
        """Prepare to go on with an interrupted run; return its newest whole checkpoint.

        Rows of metrics.csv and events beyond the checkpoint are dropped: they will come again.

        Returns:
            The checkpoint, or None if the run was interrupted before its first.

        Raises:
            UserError: If settings or the version differ, or every checkpoint is damaged. Nothing
                is touched then.
        """
        self.check_settings(config)
        found = self.latest() if checkpoints(self.path) else None
        if found and found.meta["sft_rl"] != sft_rl.__version__:
            raise UserError(
                f"--resume: {self.place} was made by sft-rl {found.meta['sft_rl']}, this is "
                f"{sft_rl.__version__}, which may compute differently; use that version"
            )
        self.config = config.model_copy(update={"run_id": self.config.run_id})
        (self.path / "summary.json").unlink(missing_ok=True)  # of fewer iterations
        self._write_config()
        self._cut(found.meta["iteration"] if found else 0)
        for torn in (self.path / "checkpoints").glob(".*"):  # by a process killed while saving
            shutil.rmtree(torn)
        return found

    def go_back(self, unfit: Checkpoint, why: Exception) -> Checkpoint:
        """Go on from the checkpoint before one that was resumed and does not fit the run.

        Raises:
            UserError: If there is none.
        """
        iteration = unfit.meta["iteration"]
        self.warn(
            f"checkpoint: {self.place}/checkpoints/{iteration:06d} does not fit the run: "
            f"{last_line(why)}"
        )
        found = self.latest(before=iteration)
        self._cut(found.meta["iteration"])
        return found

    def _cut(self, done: int) -> None:
        """Drop the numbers of what will be done again."""
        if lost := self._metrics.cut(done):
            self.warn(
                f"{self.place}/metrics.csv has lost the rows of {len(lost)} iterations, the first "
                f"is {lost[0]}; the run goes on without them"
            )
        self._events.resume(done)

    def take_over(self, config: ResolvedConfig, start: Checkpoint) -> None:
        """Go on from another run's checkpoint, with other settings than before.

        The run's own checkpoints are of those before, and go.
        """
        for own in checkpoints(self.path):
            shutil.rmtree(own)
        self.config = config.model_copy(update={"run_id": self.config.run_id})
        self._write_config()
        self._cut(start.meta["iteration"])

    def check_settings(self, config: ResolvedConfig) -> None:
        """Refuse to go on with settings that would give another result.

        Raises:
            UserError: Listing what differs.
        """
        changed = changes(self.config.model_dump(), config.model_dump())
        if changed:
            raise UserError(
                f"--resume: {self.place} was started with other settings: {'; '.join(changed)}"
            )

    def is_finished(self, config: ResolvedConfig) -> bool:
        """Whether the run has come to its end, and `config` asks for no more iterations."""
        if config.training.num_iterations > self.config.training.num_iterations:
            return False
        try:
            self.read_summary()
        except UserError:
            return False
        return True

    def latest(
        self, use: Callable[[Checkpoint], None] = lambda loaded: None, *, before: float = math.inf
    ) -> Checkpoint:
        """Load the newest whole checkpoint of this run; arguments as of :func:`newest`."""
        place, warn = self.place, self.warn
        own = self.config.model_dump()
        return newest(self.path, own, use=use, warn=warn, place=place, before=before)

    def result(self, own: nn.Module | None = None) -> tuple[DenoisingPolicy, TensorGroups]:
        """Load the policy a run gave, frozen, and all tensors of the checkpoint it is in.

        A run that has not come to its end, or went wrong, gives the best one so far.

        Args:
            own: The network, of a run that had one from Python; only its kind counts.
        """
        config = self.config
        network = network_of(config, own)
        if config.policy.lora.rank is not None:
            network.load_state_dict(kept_base(self.path))
        policy = policy_of(config, network)
        averaged = "average" if config.policy.ema_decay > 0 else "policy"
        best = config.training.select_best or not self.is_finished(config)
        group = "best" if best else averaged
        loaded = self.latest(lambda found: policy.load_state_dict(found.tensors[group]) and None)
        return policy.requires_grad_(False), loaded.tensors

    def read_summary(self) -> dict[str, Any]:
        """Read summary.json back.

        Raises:
            UserError: If the run has not come to its end.
        """
        try:
            return dict(json.loads(read_regular(self.path / "summary.json")))
        except FileNotFoundError as error:
            raise UserError(f"run: {self.place} has not come to its end, go on with it") from error
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"run: {self.place}/summary.json is damaged: {first_line(error)}; --resume writes "
                "it again"
            ) from error

    def read_metrics(self) -> pd.DataFrame:
        """Read metrics.csv: one row an iteration."""
        import pandas as pd  # here, since it is slow to import

        return pd.read_csv(io.BytesIO(read_regular(self.path / "metrics.csv")))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json, which scripts read."""
        replace_file(self.path / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
