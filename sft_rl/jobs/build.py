"""The composition root: from a configuration to policy, networks, env, runner and collector.

A rollout worker imports this module, so it stays light.
"""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from envs import DenoisingVectorEnv
from sft_rl.algorithms import Networks, build_algorithm
from sft_rl.config import Config
from sft_rl.critics import NetworkCritic, build_critic, critic_builder
from sft_rl.data import Dataset, check_labels
from sft_rl.diffusion.noise import NoiseSchedule
from sft_rl.diffusion.schedule import step_schedule
from sft_rl.errors import UserError
from sft_rl.jobs.memory import keep_freed_memory
from sft_rl.networks import noise_network, value_network
from sft_rl.policy import DenoisingPolicy
from sft_rl.rollout.runner import Collector, LocalCollector, RolloutRunner
from sft_rl.seeding import derive_seed

if TYPE_CHECKING:
    from sft_rl.distributed.session import RaySession


def resolve_device(name: str) -> torch.device:
    """Turn the setting `device` into a torch device.

    Raises:
        UserError: If there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device: {name!r} is unknown, use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device: {name} asked for; GPUs here: {torch.cuda.device_count()}")
    return device


def prepare_process(config: Config) -> None:
    """Set what a process that computes needs: kernels that repeat bits, or any; memory kept."""
    keep_freed_memory()
    deterministic = config.training.deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
    if deterministic != torch.are_deterministic_algorithms_enabled():  # to set it takes a second
        torch.use_deterministic_algorithms(deterministic)


def build_networks(config: Config, network: nn.Module, shape: tuple[int, ...]) -> Networks:
    """Build policy, critic and value; the last two start from the run's seed."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(config.seed, "critic and value weights"))
        critic, value = build_critic(config, shape), value_network(config, shape)
    device = next(network.parameters()).device
    policy = DenoisingPolicy.from_config(config, network, shape).to(device)
    if config.model.compile:
        policy.network.compile()  # in place: names in state dicts stay
        if isinstance(critic, NetworkCritic):
            critic.compile()
    return Networks(
        policy=policy,
        critic=critic.to(device),
        value=value.to(device),
        pretrained=copy.deepcopy(policy).requires_grad_(False),
    )


def build_runner(config: Config, shape: tuple[int, ...]) -> RolloutRunner:
    """Build what a rollout worker runs; its weights come with the first request."""
    prepare_process(config)
    device = _rollout_device(config)
    policy = DenoisingPolicy.from_config(config, noise_network(config, shape), shape).to(device)
    if config.model.compile:
        policy.network.compile()
    env = DenoisingVectorEnv(
        num_envs=config.training.batch_size // config.rollout.shards_per_batch,
        num_steps=policy.num_steps,
        shape=shape,
        num_classes=policy.num_classes,
        array="torch",
        device=device,
    )
    dtype = getattr(torch, config.rollout.latent_dtype)
    return RolloutRunner(
        env,
        policy,
        seed=config.seed,
        latent_dtype=dtype,
        cuda_graphs=config.rollout.cuda_graphs,
    )


def _rollout_device(config: Config) -> torch.device:
    if config.rollout.num_workers == 0:  # this process, so the learner's device
        return resolve_device(config.device)
    return torch.device("cuda" if config.rollout.num_gpus_per_worker > 0 else "cpu")


def build_collector(
    config: Config,
    shape: tuple[int, ...],
    session: RaySession | None,
    *,
    warn: Callable[[str], None] = warnings.warn,
) -> Collector:
    """Build who draws trajectories: this process, or actors.

    Args:
        config: The run's configuration.
        shape: Shape of one sample.
        session: The Ray to wait for before actors start; none if it is there already.
        warn: Is told of workers that had to be replaced.
    """
    if config.rollout.num_workers == 0:
        runner = build_runner(config, shape)
        return LocalCollector(runner, num_threads=config.rollout.num_threads)
    from sft_rl.distributed.collector import RayCollector

    if session is not None:
        session.wait()
    return RayCollector(partial(build_runner, config, shape), config.rollout, warn=warn)


def check(config: Config) -> None:
    """Refuse what cannot work, before anything starts.

    Raises:
        UserError: Naming the field, what was given and what is allowed.
    """
    resolve_device(config.device)
    if config.data.path is None and config.data.name in ("cifar10", "images"):
        raise UserError(f"data.path: data.name={config.data.name} needs the path to the images")
    algorithm = build_algorithm(config)
    critic_builder(config)
    noise = NoiseSchedule.from_config(config.noise)
    schedule = step_schedule(noise, config.sampler)
    num_density_steps = algorithm.num_density_steps(len(schedule))
    if (schedule.std[:num_density_steps] <= 0).any():
        raise UserError(
            f"sampler.eta and sampler.final_std: algorithm {config.algorithm!r} needs noise in its "
            f"first {num_density_steps} steps, got std {schedule.std.round(4).tolist()}; "
            "set both above 0, or use algorithm=pathwise"
        )
    rounding = torch.finfo(getattr(torch, config.rollout.latent_dtype)).eps / 2
    smallest = schedule.std[:num_density_steps].min(initial=math.inf)
    if smallest < rounding:
        raise UserError(
            f"rollout.latent_dtype: {config.rollout.latent_dtype} rounds latents near 1 by up to "
            f"{rounding:.2g}, more than the noise {smallest:.2g} of a step, on which a policy "
            "gradient relies; use a wider type, a larger sampler.final_std, or algorithm=pathwise"
        )
    if config.training.micro_batch_size is not None and not algorithm.splits_batches:
        raise UserError(
            f"training.micro_batch_size: algorithm {config.algorithm!r} does not split its "
            "batches; leave it out, or see Algorithm.splits_batches"
        )
    batch, parts = config.training.batch_size, config.rollout.shards_per_batch
    if batch % parts:
        raise UserError(
            f"rollout.shards_per_batch: must divide training.batch_size {batch}, got {parts}"
        )
    if config.learner.num_workers > 1 and config.learner.launcher == "local":
        raise UserError(
            f"learner.num_workers: {config.learner.num_workers} learners need "
            "learner.launcher=ray_train, got 'local'"
        )
    if config.rollout.cuda_graphs and _rollout_device(config).type != "cuda":
        raise UserError(
            "rollout.cuda_graphs: needs rollouts on a GPU, these are on the CPU; see device and "
            "rollout.num_gpus_per_worker"
        )
    if config.model.compile and config.learner.num_workers > 1:
        raise UserError(
            "model.compile: goes with one learner, not with learner.num_workers above 1"
        )
    if config.uses_ray:
        from sft_rl.distributed.session import check_ray

        check_ray(config)


def check_data(config: Config, data: Dataset) -> None:
    """Refuse networks that do not take samples of the data's shape, or not its labels.

    Raises:
        UserError: Naming the field and what goes with such samples.
    """
    shape = data.shape
    with torch.device("meta"):
        noise_network(config, shape)
        build_critic(config, shape)
        value_network(config, shape)
    check_labels(config, data)
