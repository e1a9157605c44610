"""From a pretrained network to a few-step sampler, measured: here, or in workers of Ray Train."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from sft_rl.config import ResolvedConfig
from sft_rl.config.extensions import blaming_users
from sft_rl.data import Dataset
from sft_rl.errors import UserError
from sft_rl.jobs.build import build_collector, prepare_process
from sft_rl.jobs.clock import Clock
from sft_rl.jobs.conclusion import conclude
from sft_rl.learning.learner import Learner
from sft_rl.learning.preemption import PreemptionNotice
from sft_rl.learning.protocols import NoStore, Notice, Observer
from sft_rl.learning.team import Team
from sft_rl.learning.trainer import Trainer
from sft_rl.learning.validation import Validation
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.networks.lora import Adapted, base_of
from sft_rl.policy import load_arrays, to_arrays
from sft_rl.pretrained.full_step import FullStep, Summary
from sft_rl.rewards import OwnReward, Remote
from sft_rl.rollout.runner import Weights
from sft_rl.runs.base import kept_base
from sft_rl.runs.folder import RunFolder
from sft_rl.runs.parts import (
    data_of,
    learner_of,
    network_of,
    networks_of,
    objective_of,
    resolve_device,
)
from sft_rl.runs.remote import open_run
from sft_rl.seeding import num_threads
from sft_rl.storage.checkpoint import Checkpoint

if TYPE_CHECKING:
    from sft_rl.distributed.session import RaySession

PATIENCE_S = 60.0
"""How long a learner waits for the one it replaces."""


def fine_tune(
    network: nn.Module,
    full_step: Callable[[], FullStep],
    *,
    store: RunFolder,
    evaluator: Evaluator,
    clock: Clock,
    session: RaySession | None = None,
    checkpoint: Checkpoint | None = None,
    notice: Notice | None = None,
    team: Team | None = None,
    own: nn.Module | None = None,
    reward: OwnReward = None,
) -> Summary:
    """Fine-tune a pretrained network to few steps, evaluate, report.

    Args:
        network: The pretrained network, on the learner's device; it is trained further.
        full_step: Gives what is measured of it, once that is there.
        store: The run's folder, which knows the configuration.
        evaluator: Measures; knows the data.
        clock: Takes the seconds of the phases and tells the observer of them.
        session: The Ray to wait for before actors start; none if it is there already.
        checkpoint: Where to go on; none starts from the pretrained network.
        notice: Asked after every iteration whether to save and leave.
        team: The learners that share the work; by default this process alone.
        own: The network before fine-tuning, where Python hands it over.
        reward: The reward, where Python hands it over.

    Returns:
        The content of summary.json, which is written; nothing unless this learner leads.
    """
    config, data, team = store.config, evaluator.data, team or Team()
    prepare_process(deterministic=config.training.deterministic)
    with clock.phase("first evaluation"), num_threads(config.learner.num_threads):
        device = next(network.parameters()).device
        objective = objective_of(
            config, reward, data=data, device=device, remote=_scorers(store, clock)
        )
        networks = networks_of(config, network, objective)
        before = evaluator.samples(networks.policy)
        base = base_of(networks.policy.network)
        is_adapted = base is not networks.policy.network
        if is_adapted and team.leads:
            store.keep_base(base)
    with closing(objective):
        with ExitStack() as stack:
            with clock.phase("starting workers"):
                warn = clock.observer.warn
                collector = team.collector(
                    partial(
                        build_collector,
                        config,
                        session,
                        objective,
                        run=Path(store.absolute_place).name,
                        own=own,
                        base=to_arrays(base) if is_adapted else None,
                        warn=warn,
                    )
                )
                stack.callback(collector.close)
            stack.enter_context(_base_rounded(networks.policy.network, store, team))
            # The first optimiser takes a second to import; the workers start meanwhile.
            learner = learner_of(config, networks, data, team=team)
            validation = Validation(
                evaluator, networks, num_scored=config.reward.num_scored, team=team, warn=warn
            )
            trainer = Trainer(
                learner,
                collector,
                validation=validation,
                store=store if team.leads else NoStore(),
                observer=clock.observer,
                training=config.training,
                shards_per_batch=config.rollout.shards_per_batch,
                num_warmup_steps=config.critic.num_warmup_steps if objective.critic else 0,
                threads=config.learner.num_threads,
                notice=notice,
            )
            if checkpoint is not None:
                trainer.iteration = _go_on(learner, checkpoint, store=store, team=team)
            stack.enter_context(
                team.divide(
                    networks.policy.network,
                    *networks.critic.called,
                    networks.value,
                    by_vector=networks.policy.conditions is not None,
                )
            )
            with clock.phase("fine-tuning"):
                trainer.train()
            team.gather(learner.result.network, networks.pretrained.network)
        if not team.leads:
            return {}
        validation.team = Team()  # the others have left
        return conclude(
            learner, full_step(), before=before, store=store, validation=validation, clock=clock
        )


@contextmanager
def _base_rounded(network: nn.Module, store: RunFolder, team: Team) -> Iterator[None]:
    """Train an adapter beside rounded weights; the result is measured, and has its hash, with all.

    Results are the same: weights are rounded only where the network does it at every call.
    """
    if not isinstance(network, Adapted):
        yield
        return
    network.round_base()
    yield
    if team.leads:
        network.load_base(kept_base(store.path))


def _go_on(learner: Learner, checkpoint: Checkpoint, *, store: RunFolder, team: Team) -> int:
    """Load the learners' state, going back over checkpoints that do not fit.

    Returns:
        The iteration that it was saved after.

    Raises:
        UserError: If none fits.
    """
    while True:
        try:
            learner.load_state(checkpoint.tensors, version=checkpoint.meta["version"])
        except (KeyError, RuntimeError) as error:
            older = store.go_back(checkpoint, error) if team.leads else checkpoint
            checkpoint = team.leaders(older)
            continue
        best = checkpoint.meta["best_loss"]
        learner.best_loss = math.inf if best is None else best
        return int(checkpoint.meta["iteration"])


def _scorers(store: RunFolder, clock: Clock) -> Remote | None:
    """What starts scorers in Ray actors, where there is a Ray."""
    if not store.config.uses_ray:
        return None
    from sft_rl.distributed.scorers import start_scorers

    return start_scorers(Path(store.absolute_place).name, clock.observer.warn)


def fine_tune_elsewhere(
    network: nn.Module,
    full_step: Callable[[], FullStep],
    *,
    store: RunFolder,
    data: Dataset,
    clock: Clock,
    notice: PreemptionNotice,
    own: nn.Module | None = None,
    reward: OwnReward = None,
) -> Summary:
    """Fine-tune in workers of Ray Train; arguments as of :func:`fine_tune`."""
    from sft_rl.distributed.training import run_on_train

    work = partial(
        _fine_tune_here,
        config=store.config,
        place=store.absolute_place,
        weights=to_arrays(network),
        full_step=full_step(),
        seconds=clock.total()["total"],
        # What settings name is loaded there; what Python handed over goes along.
        data=data if store.config.data.is_handed_over else None,
        own=own,
        reward=reward,
    )
    run_on_train(
        work,
        store.config.learner,
        place=store.absolute_place,
        distance=store.config.distance,
        observer=clock.observer,
        notice=notice,
    )
    return store.read_summary()


def _fine_tune_here(
    team: Team,
    observer: Observer,
    notice: Notice,
    *,
    config: ResolvedConfig,
    place: str,
    weights: Weights,
    full_step: FullStep,
    seconds: float,
    data: Dataset | None,
    own: nn.Module | None,
    reward: OwnReward,
) -> None:
    """Fine-tune as one learner under Ray Train, from where the run stands.

    Args:
        team: All learners.
        observer: Is told of the progress.
        notice: Asked after every iteration whether to save and leave.
        config: The run's configuration.
        place: Path or URL of the run's folder.
        weights: Those of the pretrained network.
        full_step: What is measured of it.
        seconds: How long the run has taken so far.
        data: The data, where Python handed them over.
        own: The network, where Python handed it over.
        reward: The reward, where Python handed it over.

    Raises:
        UserError: If the data are not the run's on this node.
    """
    data = data or data_of(config)
    if data.units.samples != config.samples:
        raise UserError(f"data.path: the node {socket.gethostname()} has other data than the run")
    network = network_of(config, own)
    load_arrays(network, weights)
    store = open_run(place) if team.leads else RunFolder(Path(place), config)
    store.warn, checkpoint = observer.warn, None
    with ExitStack() as stack:
        if team.leads:
            # A predecessor may still be dying, on this node or on another.
            stack.enter_context(store.lock(".learner.lock", patience_s=PATIENCE_S))
            checkpoint = store.resume(config)
        stack.enter_context(blaming_users(store.path))
        fine_tune(
            network.to(resolve_device(config.device)),
            lambda: full_step,
            store=store,
            evaluator=Evaluator(data, config.metrics),
            clock=Clock(time.perf_counter() - seconds, observer),
            checkpoint=team.leaders(checkpoint),
            notice=notice,
            team=team,
            own=own,
            reward=reward,
        )
