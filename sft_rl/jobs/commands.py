"""The jobs behind the commands: train, pretrain, evaluate, sample."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from sft_rl.config import Config, DataConfig, ResolvedConfig
from sft_rl.config.extensions import blaming_users
from sft_rl.data import Dataset
from sft_rl.data.point_files import read_points
from sft_rl.distributed.placement import learner_bundle
from sft_rl.errors import OwnCodeFailed, UserError
from sft_rl.export.sampler import load_sampler, sampler_of
from sft_rl.jobs.beside import measured_beside
from sft_rl.jobs.build import prepare_process
from sft_rl.jobs.clock import Clock
from sft_rl.jobs.dry_run import check_memory, object_bytes
from sft_rl.jobs.fine_tuning import fine_tune, fine_tune_elsewhere
from sft_rl.jobs.report import FLOOR, Table, comparison, names_of, number
from sft_rl.jobs.trackers import Trackers
from sft_rl.learning.preemption import Preempted, PreemptionNotice
from sft_rl.learning.protocols import Observer
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.pretrained.full_step import Summary
from sft_rl.rewards import OwnReward
from sft_rl.runs.folder import RunFolder
from sft_rl.runs.parts import data_of, full_step_network, measured_full_step
from sft_rl.runs.remote import create_run, free_run_path, holds_run, open_run
from sft_rl.runs.resolve import resolve
from sft_rl.seeding import num_threads

Resume = Literal["never", "always", "auto"]


@dataclass(frozen=True)
class TrainedRun:
    """What the main job leaves.

    Attributes:
        store: The run's folder.
        summary: The content of its summary.json.
        was_finished: Whether it had come to its end before.
    """

    store: RunFolder
    summary: Summary
    was_finished: bool = False


def train(
    config: Config,
    out: Path | str | None = None,
    *,
    observer: Observer,
    started: float | None = None,
    resume: Resume = "never",
    network: nn.Module | None = None,
    data: Dataset | None = None,
    reward: OwnReward = None,
    trackers: Trackers | None = None,
) -> TrainedRun:
    """Run the main job: pretrain once, fine-tune to few steps, evaluate, report.

    Args:
        config: The settings.
        out: Path or URL of the run's folder; by default a new one under ``runs/``.
        observer: Is told of the progress.
        started: When the command began, by ``time.perf_counter()``.
        resume: Go on with the interrupted run in `out`; ``auto``: or start it.
        network: The full-step network, where Python hands it over.
        data: The data, where Python hands them over.
        reward: The reward, where Python hands it over.
        trackers: Services that are told the run's numbers, too.

    Raises:
        UserError: Naming what was wrong, before anything starts; or what went wrong.
        KeyboardInterrupt: After a checkpoint, if fine-tuning had begun.
    """
    started = time.perf_counter() if started is None else started
    if resume != "never" and out is None:
        raise UserError("--resume: say which run, with --out FOLDER")
    if config.data.is_images:
        observer.phase("images")
    with blaming_users():
        config, data = resolve(
            config,
            network=network,
            data=data,
            reward=reward,
            warn=observer.warn,
            progress=observer.progress,
        )
    if data.units.is_images and network is None and reward is None:
        check_memory(config)
    if config.uses_ray:
        from sft_rl.distributed.session import check_ray

        check_ray(config.ray, config.rollout, config.learner, config.reward)
    if out is None:
        out = free_run_path(config.preset, config.sampler.num_steps, config.seed)
    going_on = resume == "always" or (resume == "auto" and holds_run(out))
    store = open_run(out) if going_on else create_run(out, config)
    store.warn = observer.warn
    if going_on:
        store.check_settings(config)
        if store.is_finished(config):
            return TrainedRun(store, store.read_summary(), was_finished=True)
    with blaming_users(store.path):
        summary = _train(
            config,
            data,
            store,
            clock=Clock(started, observer),
            going_on=going_on,
            network=network,
            reward=reward,
            trackers=trackers or Trackers(),
        )
    return TrainedRun(store, summary)


def _train(
    config: ResolvedConfig,
    data: Dataset,
    store: RunFolder,
    *,
    clock: Clock,
    going_on: bool,
    network: nn.Module | None,
    reward: OwnReward,
    trackers: Trackers,
) -> Summary:
    """Train in an open folder; arguments as of :func:`train`."""
    prepare_process(deterministic=config.training.deterministic)
    evaluator, own = Evaluator(data, config.metrics), network
    with ExitStack() as stack:
        stack.enter_context(store.lock())
        if not going_on:
            stack.enter_context(_taken_back(store))
        notice = stack.enter_context(PreemptionNotice())
        checkpoint = store.resume(config) if going_on else None
        observer = watcher = stack.enter_context(trackers.watching(clock.observer, store))
        clock.observer, session = observer, None
        if config.uses_ray:
            from sft_rl.distributed.session import RaySession

            session = stack.enter_context(
                RaySession(
                    config.ray,
                    config.rollout,
                    objects=object_bytes(config, own),
                    warn=observer.warn,
                )
            )
            if session.exports:  # what a cluster refuses is known before anything is trained
                session.wait()
                from sft_rl.distributed.metrics import RayMetrics
                from sft_rl.distributed.nodes import check_shared

                if config.learner.launcher == "ray_train":
                    learner = learner_bundle(config.learner)
                    check_shared(f"{store.absolute_place}/config.yaml", learner, field="--out")
                run = Path(store.absolute_place).name
                clock.observer = RayMetrics(observer, run=run, preset=config.preset)
        with clock.phase("pretraining"):
            network, _ = full_step_network(
                config, data, own=own, progress=observer.progress, warn=observer.warn
            )
        if config.rollout.num_workers:
            stack.enter_context(num_threads(config.learner.num_threads))
        measure = partial(
            measured_full_step,
            config,
            copy.deepcopy(network),  # the network itself goes on to be fine-tuned
            evaluator,
            warn=observer.warn,
        )
        full_step = measured_beside(measure, clock, waits=config.rollout.num_workers > 0)
        if config.learner.launcher == "ray_train":
            assert session is not None, "Ray Train needs Ray"
            session.wait()
            summary = fine_tune_elsewhere(
                network,
                full_step,
                store=store,
                data=data,
                clock=clock,
                notice=notice,
                own=own,
                reward=reward,
            )
        else:
            summary = fine_tune(
                network,
                full_step,
                store=store,
                evaluator=evaluator,
                clock=clock,
                session=session,
                checkpoint=checkpoint,
                notice=notice,
                own=own,
                reward=reward,
            )
        watcher.conclude(summary["final"])
        return summary


@contextmanager
def _taken_back(store: RunFolder) -> Iterator[None]:
    """Leave no folder of a new run that failed before it began: it would block the next try.

    One whose own code failed keeps it, for the traceback.
    """
    try:
        yield
    except UserError as error:
        if not isinstance(error, Preempted | OwnCodeFailed):
            store.abandon()
        raise


def pretrain(config: Config, *, observer: Observer) -> dict[str, str]:
    """Train and cache the full-step model; return the rows of a table about it."""
    if config.data.is_images:
        observer.phase("images")
    resolved, data = resolve(config, trains=False, warn=observer.warn, progress=observer.progress)
    prepare_process(deterministic=resolved.training.deterministic)
    begun = time.perf_counter()
    observer.phase("pretraining")
    network, cached = full_step_network(
        resolved, data, progress=observer.progress, warn=observer.warn
    )
    seconds = time.perf_counter() - begun
    observer.phase("evaluation")
    evaluator = Evaluator(data, resolved.metrics)
    measured = measured_full_step(
        resolved, network, evaluator, warn=observer.warn, progress=observer.progress
    ).numbers
    rows = {}
    if "nfe" in measured:
        rows[f"{resolved.distance}, {measured['nfe']} steps"] = number(measured, resolved.distance)
    return {
        **rows,
        FLOOR: number(measured["noise_floors"], resolved.distance),
        "pretraining": "found in the cache" if cached else f"{seconds:.1f} s",
    }


def evaluate(folder: Path | str, *, observer: Observer) -> Table:
    """Measure the sampler of a run again; return a table.

    Args:
        folder: Path or URL of the run's folder.
        observer: Is told of the progress.

    Raises:
        UserError: If there is no run, or its data are not there or are others now.
    """
    store = open_run(folder)
    config = store.config
    prepare_process(deterministic=config.training.deterministic)
    policy = sampler_of(store).policy
    if config.data.is_images:
        observer.phase("images")
    data = data_of(config, progress=observer.progress)
    if data.units.samples != config.samples:
        raise UserError(f"data.path: {config.data.path} is not what {folder} was trained on")
    evaluator = Evaluator(data, config.metrics)
    observer.phase("evaluation")
    with num_threads(config.learner.num_threads):
        samples = evaluator.samples(policy, progress=observer.progress)
        distances = evaluator.all_distances(samples)
        columns = {f"{policy.num_steps} steps": distances, FLOOR: evaluator.noise_floors()}
    return comparison(columns, names_of(distances))


def write_samples(
    folder: Path | str,
    *,
    num: int,
    out: Path,
    seed: int,
    label: int | str | None = None,
    condition: Sequence[float] | Path | None = None,
) -> None:
    """Draw samples from a run's sampler into a new file, in the data's units.

    Args:
        folder: Path or URL of the run's folder.
        num: How many samples.
        out: The file to write.
        seed: Seed of noise and labels.
        label: Class or prompt of all samples; None draws them, if the model has any.
        condition: Vector of all samples, or a table with one for each, whose columns are called as
            those of the data; None takes those of training samples, if the model has any.

    Raises:
        UserError: If the file cannot be written, its ending does not go with the samples, or the
            model has no such class or condition.
    """
    sampler = load_sampler(folder)
    vectors: Any = condition
    if isinstance(condition, Path):
        known = sampler.units.samples.conditions
        columns = None if known is None else known.names
        try:
            vectors = read_points(DataConfig(path=str(condition), columns=columns)).values
        except UserError as error:
            raise UserError(f"--condition: {str(error).partition(': ')[2]}") from error
    samples = sampler.sample(num, seed=seed, label=label, condition=vectors)
    sampler.units.write(out, samples)
