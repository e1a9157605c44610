"""The jobs behind the commands: train, pretrain, evaluate, sample."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from sft_rl.config import Config
from sft_rl.data import Dataset, load_dataset
from sft_rl.data.images import ImageDataset, write_images
from sft_rl.data.points import write_points
from sft_rl.errors import UserError
from sft_rl.jobs.build import (
    check_data,
    prepare_process,
    resolve_device,
)
from sft_rl.jobs.clock import Clock
from sft_rl.jobs.fine_tuning import fine_tune, fine_tune_elsewhere
from sft_rl.learning.preemption import PreemptionNotice
from sft_rl.learning.protocols import Observer
from sft_rl.metrics.evaluation import Evaluator, sample_in_units
from sft_rl.policy import DenoisingPolicy
from sft_rl.pretrained.full_step import Summary, full_step_metrics
from sft_rl.pretrained.training import pretrained_network, with_pretrained
from sft_rl.rollout.runner import num_threads
from sft_rl.runs.folder import RunFolder
from sft_rl.runs.remote import create_run, open_run


def train(
    config: Config, out: Path | str, *, observer: Observer, started: float, resume: bool = False
) -> Summary:
    """Run the main job: pretrain once, fine-tune to few steps, evaluate, report.

    Args:
        config: The run's configuration, checked.
        out: Path or URL of the run's folder, new unless it is resumed.
        observer: Is told of the progress.
        started: When the command began, by ``time.perf_counter()``.
        resume: Go on with the interrupted run in `out`.

    Returns:
        The content of summary.json.
    """
    config = with_pretrained(config)
    prepare_process(config)
    data = load_dataset(config.data)
    check_data(config, data)
    evaluator = Evaluator(data, config)
    store = open_run(out) if resume else create_run(out, config)
    store.warn = observer.warn
    clock = Clock(started, observer)
    with ExitStack() as stack:
        stack.enter_context(store.lock())
        notice = stack.enter_context(PreemptionNotice())
        checkpoint = store.resume(config) if resume else None
        session = None
        if config.uses_ray:
            from sft_rl.distributed.session import RaySession

            session = stack.enter_context(RaySession(config.ray, config.rollout))
        with num_threads(config.learner.num_threads):
            with clock.phase("pretraining"):
                network, _ = pretrained_network(
                    config, data, device=resolve_device(config.device), progress=observer.progress
                )
            with clock.phase("full-step sampler"):
                full_step = full_step_metrics(config, network, evaluator)
        if config.learner.launcher == "ray_train":
            assert session is not None, "Ray Train needs Ray"
            session.wait()
            return fine_tune_elsewhere(network, full_step, store=store, clock=clock, notice=notice)
        return fine_tune(
            network,
            full_step,
            store=store,
            evaluator=evaluator,
            clock=clock,
            session=session,
            checkpoint=checkpoint,
            notice=notice,
        )


def load_policy(store: RunFolder) -> tuple[DenoisingPolicy, Dataset]:
    """Load the sampler that a run gave, and its data."""
    prepare_process(store.config)
    data = load_dataset(store.config.data)
    policy, _ = store.result(data.shape)
    return policy.to(resolve_device(store.config.device)), data


def pretrain(config: Config, *, observer: Observer) -> dict[str, str]:
    """Train and cache the full-step model; return the rows of a table about it."""
    config = with_pretrained(config)
    prepare_process(config)
    data = load_dataset(config.data)
    check_data(config, data)
    device = resolve_device(config.device)
    begun = time.perf_counter()
    observer.phase("pretraining")
    with num_threads(config.learner.num_threads):
        network, cached = pretrained_network(
            config, data, device=device, progress=observer.progress
        )
        seconds = time.perf_counter() - begun
        observer.phase("evaluation")
        measured = full_step_metrics(config, network, Evaluator(data, config))
    return {
        f"{config.distance}, {measured['nfe']} steps": f"{measured[config.distance]:.4f}",
        "noise floor": f"{measured['noise_floor']:.4f}",
        "pretraining": "found in the cache" if cached else f"{seconds:.1f} s",
    }


def evaluate(folder: Path | str) -> dict[str, str]:
    """Measure the sampler of a run again; return the rows of a table."""
    store = open_run(folder)
    policy, data = load_policy(store)
    evaluator = Evaluator(data, store.config)
    distances = evaluator.all_distances(evaluator.samples(policy))
    floors = evaluator.noise_floors()
    return {
        f"{name}, {policy.num_steps} steps": f"{value:.5f}   (noise floor {floors[name]:.5f})"
        for name, value in distances.items()
    }


def write_samples(
    folder: Path | str, *, num: int, out: Path, seed: int, label: int | None = None
) -> None:
    """Draw samples from a run's sampler into a file, in the data's units.

    Args:
        folder: Path or URL of the run's folder.
        num: How many samples.
        out: The file to write.
        seed: Seed of noise and labels.
        label: Class of all samples; None draws classes, if the model has any.

    Raises:
        UserError: If the file cannot be written, its ending does not go with the samples, or the
            model has no such class.
    """
    policy, data = load_policy(open_run(folder))
    if label is not None and not 0 <= label < policy.num_classes:
        has = f"classes 0 to {policy.num_classes - 1}" if policy.num_classes else "no classes"
        raise UserError(f"--label: got {label}, but the model of {folder} has {has}")
    samples = sample_in_units(policy, data, num, seed, label)
    if isinstance(data, ImageDataset):
        write_images(out, samples, data.pixel_max)
    else:
        write_points(out, samples)
