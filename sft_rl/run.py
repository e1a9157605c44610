"""The jobs behind the commands: train, pretrain, evaluate, sample."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from sft_rl.algorithms import build_algorithm
from sft_rl.build import build_collector, build_networks, check_shape, resolve_device
from sft_rl.cache import cache_folder
from sft_rl.checkpoint import Checkpoint
from sft_rl.config import Config
from sft_rl.data import Dataset, load_dataset
from sft_rl.data.images import ImageDataset, write_images
from sft_rl.data.points import write_points
from sft_rl.diffusion.noise import NoiseSchedule
from sft_rl.diffusion.schedule import own_steps
from sft_rl.files import replace_file, saving
from sft_rl.learner import Learner
from sft_rl.metrics.distances import Array
from sft_rl.metrics.evaluation import Evaluator, denoising_path, sample_in_units
from sft_rl.policy import DenoisingPolicy
from sft_rl.preemption import PreemptionNotice
from sft_rl.pretraining import cache_key, pretrained_network
from sft_rl.rollout import num_threads
from sft_rl.store import RunFolder, parameters_sha256
from sft_rl.trainer import Observer, Trainer
from sft_rl.types import Metrics

if TYPE_CHECKING:
    from sft_rl.distributed.session import RaySession

Summary = dict[str, Any]
NUM_KEPT = 64
"""Images of the full-step sampler that are kept for pictures."""


class Clock:
    """Seconds by phase; tells the observer when a phase begins."""

    def __init__(self, started: float, observer: Observer) -> None:
        self.started = started
        self.observer = observer
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        begun = time.perf_counter()
        self.observer.phase(name)
        yield
        self.seconds[name] = round(time.perf_counter() - begun, 2)

    def total(self) -> dict[str, float]:
        """Seconds since the start, and of each phase."""
        return {"total": round(time.perf_counter() - self.started, 2), **self.seconds}


def train(
    config: Config, out: Path, *, observer: Observer, started: float, resume: bool = False
) -> Summary:
    """Run the main job: pretrain once, fine-tune to few steps, evaluate, report.

    Args:
        config: The run's configuration, checked.
        out: Folder of the run, new unless it is resumed.
        observer: Is told of the progress.
        started: When the command began, by ``time.perf_counter()``.
        resume: Go on with the interrupted run in `out`.

    Returns:
        The content of summary.json.
    """
    config = with_pretrained(config)
    data = load_dataset(config.data)
    check_shape(config, data.shape)
    evaluator = Evaluator(data, config)
    store = RunFolder.open(out) if resume else RunFolder.create(out, config)
    store.warn = observer.warn
    clock = Clock(started, observer)
    with ExitStack() as stack:
        stack.enter_context(store.lock())
        notice = stack.enter_context(PreemptionNotice())
        checkpoint = store.resume(config) if resume else None
        session = None
        if config.rollout.num_workers > 0:
            from sft_rl.distributed.session import RaySession

            session = stack.enter_context(RaySession(config.ray, config.rollout))
        with num_threads(config.learner.num_threads), clock.phase("pretraining"):
            network, _ = pretrained_network(
                config, data, device=resolve_device(config.device), progress=observer.progress
            )
            full_step = full_step_metrics(config, network, evaluator)
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


def fine_tune(
    network: nn.Module,
    full_step: Summary,
    *,
    store: RunFolder,
    evaluator: Evaluator,
    clock: Clock,
    session: RaySession | None = None,
    checkpoint: Checkpoint | None = None,
    notice: PreemptionNotice | None = None,
) -> Summary:
    """Fine-tune a pretrained network to few steps, evaluate, report.

    Args:
        network: The pretrained network, on the learner's device; it is trained further.
        full_step: What :func:`full_step_metrics` says of it.
        store: The run's folder, which knows the configuration.
        evaluator: Measures; knows the data.
        clock: Takes the seconds of the phases and tells the observer of them.
        session: The Ray to wait for before actors start; none if it is there already.
        checkpoint: Where to go on; none starts from the pretrained network.
        notice: Asked after every iteration whether to save and leave.

    Returns:
        The content of summary.json, which is written.
    """
    config, data = store.config, evaluator.data
    with clock.phase("first evaluation"), num_threads(config.learner.num_threads):
        networks = build_networks(config, network, data.shape)
        before = evaluator.samples(networks.policy)
    learner = Learner(networks, build_algorithm(config), data=data, config=config)
    with ExitStack() as stack:
        with clock.phase("starting workers"):
            collector = build_collector(config, data.shape, session, warn=clock.observer.warn)
            stack.callback(collector.close)
        trainer = Trainer(
            learner,
            collector,
            evaluator=evaluator,
            store=store,
            observer=clock.observer,
            config=config,
            notice=notice,
        )
        if checkpoint is not None:
            best = checkpoint.meta["best_distance"]
            learner.load_state(checkpoint.tensors, version=checkpoint.meta["version"])
            learner.best_distance = math.inf if best is None else best
            trainer.iteration = checkpoint.meta["iteration"]
        with clock.phase("fine-tuning"):
            trainer.train()
    return _conclude(
        learner, full_step, before=before, store=store, evaluator=evaluator, clock=clock
    )


def _conclude(
    learner: Learner,
    full_step: Summary,
    *,
    before: Array,
    store: RunFolder,
    evaluator: Evaluator,
    clock: Clock,
) -> Summary:
    """Measure the result against held-out data, draw the pictures, write the summary."""
    config, data, policy = store.config, evaluator.data, learner.result
    with clock.phase("last evaluation"), num_threads(config.learner.num_threads):
        begun = time.perf_counter()
        after = evaluator.samples(policy)
        seconds_per_sample = (time.perf_counter() - begun) / len(after)
        final = evaluator.all_distances(after)
        path = denoising_path(policy, data, num=40, seed=config.metrics.seed)
    with clock.phase("plots"):
        from sft_rl.report import Samples, write_plots

        samples = Samples(
            evaluator.reference, before, after, path, full_step_samples(config, evaluator)
        )
        with saving(store.path / "plots"):
            write_plots(store.path, samples, data)
    summary = {
        "preset": config.preset,
        "algorithm": config.algorithm,
        "seed": config.seed,
        "num_steps": config.sampler.num_steps,
        f"{evaluator.name}_initial": evaluator.distance(before),
        f"{evaluator.name}_final": final[evaluator.name],
        f"{evaluator.name}_full_step": full_step[evaluator.name],
        "noise_floor": full_step["noise_floor"],
        "final": final,
        "full_step": full_step,
        "protocol": {**evaluator.protocol, "nfe": policy.num_steps},
        "seconds_per_sample": seconds_per_sample,
        "wall_seconds": clock.total(),
        "base_sha256": parameters_sha256(learner.networks.pretrained.network),
        "policy_sha256": parameters_sha256(policy),
    }
    store.write_summary(summary)
    return summary


def full_step_metrics(config: Config, network: nn.Module, evaluator: Evaluator) -> Summary:
    """Measure the full-step sampler and the noise floors, once for a pretrained model.

    Kept in the cache, by the model and the measuring protocol.
    """
    file = _full_step_file(config, evaluator)
    if file.exists():
        return dict(json.loads(file.read_text()))
    noise = NoiseSchedule.from_config(config.noise)
    policy = DenoisingPolicy(network, own_steps(noise), shape=evaluator.data.shape)
    policy = policy.to(next(network.parameters()).device)
    samples = evaluator.samples(policy)
    distances: Metrics = evaluator.all_distances(samples)
    floors = evaluator.noise_floors()
    result: Summary = {
        **distances,
        "nfe": policy.num_steps,
        "noise_floor": floors[evaluator.name],
        "noise_floors": floors,
    }
    with saving(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(evaluator.data, ImageDataset):
            np.save(file.with_suffix(".npy"), samples[:NUM_KEPT])
    replace_file(file, json.dumps(result).encode())
    return result


def full_step_samples(config: Config, evaluator: Evaluator) -> Array | None:
    """Some images of the full-step sampler, from the cache; None for points or if not there."""
    file = _full_step_file(config, evaluator).with_suffix(".npy")
    return np.load(file, allow_pickle=False) if file.exists() else None


def _full_step_file(config: Config, evaluator: Evaluator) -> Path:
    protocol = "-".join(str(v) for v in config.metrics.model_dump().values())
    return cache_folder() / "full_step" / f"{cache_key(config, evaluator.data)}-{protocol}.json"


def with_pretrained(config: Config) -> Config:
    """Fill in what a pretrained model of somebody else's says of itself, if there is one."""
    if config.pretrained.path is None:
        return config
    from sft_rl.pretrained import resolve_pretrained  # here, since diffusers is slow to import

    return resolve_pretrained(config)


def load_policy(store: RunFolder) -> tuple[DenoisingPolicy, Dataset]:
    """Load the sampler that a run gave, and its data."""
    data = load_dataset(store.config.data)
    policy, _ = store.result(data.shape)
    return policy.to(resolve_device(store.config.device)), data


def pretrain(config: Config, *, observer: Observer) -> dict[str, str]:
    """Train and cache the full-step model; return the rows of a table about it."""
    config = with_pretrained(config)
    data = load_dataset(config.data)
    check_shape(config, data.shape)
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


def evaluate(folder: Path) -> dict[str, str]:
    """Measure the sampler of a run again; return the rows of a table."""
    store = RunFolder.open(folder)
    policy, data = load_policy(store)
    evaluator = Evaluator(data, store.config)
    distances = evaluator.all_distances(evaluator.samples(policy))
    floors = evaluator.noise_floors()
    return {
        f"{name}, {policy.num_steps} steps": f"{value:.5f}   (noise floor {floors[name]:.5f})"
        for name, value in distances.items()
    }


def write_samples(folder: Path, *, num: int, out: Path, seed: int) -> None:
    """Draw samples from a run's sampler into a file, in the data's units.

    Raises:
        UserError: If the file cannot be written, or its ending does not go with the samples.
    """
    policy, data = load_policy(RunFolder.open(folder))
    samples = sample_in_units(policy, data, num, seed)
    if isinstance(data, ImageDataset):
        write_images(out, samples, data.pixel_max)
    else:
        write_points(out, samples)
