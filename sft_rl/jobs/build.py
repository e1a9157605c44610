"""The composition root of rollouts: who draws trajectories, here or in actors.

A rollout worker imports this module, so it stays light.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from envs import DenoisingVectorEnv
from sft_rl.config import ResolvedConfig
from sft_rl.jobs.memory import keep_freed_memory
from sft_rl.networks.lora import Adapted
from sft_rl.policy import load_arrays
from sft_rl.rewards import Objective
from sft_rl.rollout.runner import Collector, LocalCollector, RolloutRunner, Weights
from sft_rl.rollout.scored import ScoredAheadCollector, ScoredCollector
from sft_rl.runs.parts import algorithm_of, network_of, policy_of, rollout_device

if TYPE_CHECKING:
    from sft_rl.distributed.session import RaySession


def prepare_process(*, deterministic: bool) -> None:
    """Set what a process that computes needs: kernels that repeat bits, or any; memory kept."""
    keep_freed_memory()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
    if deterministic != torch.are_deterministic_algorithms_enabled():  # to set it takes a second
        torch.use_deterministic_algorithms(deterministic)


def build_runner(
    config: ResolvedConfig, own: nn.Module | None = None, base: Weights | None = None
) -> RolloutRunner:
    """Build what a rollout worker runs; its weights come with the first request.

    Args:
        config: The run's configuration.
        own: The network, where Python hands it over.
        base: Weights of the network that an adapter leaves alone; none without one.
    """
    prepare_process(deterministic=config.training.deterministic)
    device = rollout_device(config)
    network = network_of(config, own)
    if base is not None:
        load_arrays(network, base)
    policy = policy_of(config, network, explores=True).to(device)
    if isinstance(policy.network, Adapted):
        policy.network.round_base()
    if config.model.compile:
        policy.network.compile()
    env = DenoisingVectorEnv(
        num_envs=config.training.batch_size // config.rollout.shards_per_batch,
        num_steps=policy.num_steps,
        shape=policy.shape,
        num_classes=policy.num_classes,
        conditions=policy.conditions,
        array="torch",
        device=device,
    )
    algorithm = algorithm_of(config)
    window, _ = algorithm.exploration(policy.num_steps) or (0, 0.0)
    return RolloutRunner(
        env,
        policy,
        seed=config.seed,
        latent_dtype=getattr(torch, config.rollout.latent_dtype),
        keep_expected=algorithm.looks_ahead,
        cuda_graphs=config.rollout.cuda_graphs,
        group_size=config.rollout.group_size,
        branch_step=config.rollout.branch_step,
        window=window,
    )


def build_collector(
    config: ResolvedConfig,
    session: RaySession | None = None,
    objective: Objective | None = None,
    *,
    run: str = "run",
    own: nn.Module | None = None,
    base: Weights | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> Collector:
    """Build who draws trajectories, this process or actors, and who scores them once.

    Args:
        config: The run's configuration.
        session: The Ray to wait for before actors start; none if it is there already.
        objective: Whose rewards score each trajectory once; none for the critic alone.
        run: The run's name, which is in those of the workers.
        own: The network, where Python hands it over.
        base: Weights of the network that an adapter leaves alone; none without one.
        warn: Is told of workers that had to be replaced.
    """
    if session is not None:
        session.wait()
    exports = session is None or session.exports
    make_runner = partial(build_runner, config, own, base)
    collector = _build_drawing(config, make_runner, run=run, exports=exports, warn=warn)
    if objective is None or not objective.fixed:
        return collector
    elsewhere = [term for term in config.reward.terms if term.is_elsewhere]
    if not elsewhere or config.rollout.num_workers == 0:
        return ScoredCollector(collector, objective.fixed_scores)
    at_once = max(term.num_scorers for term in elsewhere)
    return ScoredAheadCollector(collector, objective.fixed_scores, at_once=max(at_once, 1))


def _build_drawing(
    config: ResolvedConfig,
    make_runner: Callable[[], RolloutRunner],
    *,
    run: str,
    exports: bool,
    warn: Callable[[str], None],
) -> Collector:
    if config.rollout.num_workers == 0:
        return LocalCollector(make_runner(), num_threads=config.rollout.num_threads)
    from sft_rl.distributed.collector import RayCollector

    return RayCollector(make_runner, config.rollout, run=run, exports=exports, warn=warn)
