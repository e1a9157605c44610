"""From a resolved configuration to the parts of a run."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sft_rl.algorithms import Algorithm, Networks, algorithm_class
from sft_rl.config import Config, ResolvedConfig
from sft_rl.config.extensions import is_reference, own_options
from sft_rl.critics import Critic, NetworkCritic, build_critic
from sft_rl.data import Dataset
from sft_rl.data.units import Units
from sft_rl.diffusion.noise import path_of
from sft_rl.diffusion.prediction import Prediction
from sft_rl.diffusion.schedule import StepSchedule, step_schedule
from sft_rl.errors import UserError
from sft_rl.learning.learner import Learner, Optimisation
from sft_rl.learning.team import Team
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.networks import noise_network, value_network
from sft_rl.networks.conditions import keep_prompts
from sft_rl.networks.lora import Adapted
from sft_rl.networks.own import OwnNetwork
from sft_rl.policy import DenoisingPolicy
from sft_rl.pretrained.full_step import FullStep, measure_full_step
from sft_rl.pretrained.pictures import Pipeline, load_pictures
from sft_rl.pretrained.training import (
    guided_network,
    keep_conditions,
    pretrained_key,
    pretrained_network,
)
from sft_rl.rewards import Objective, OwnReward, Remote, build_objective, handed_over
from sft_rl.seeding import derive_seed, num_threads
from sft_rl.storage.cache import hash_of
from sft_rl.types import Progress, silent


def resolve_device(name: str) -> torch.device:
    """Turn the setting `device` into a torch device.

    Raises:
        UserError: If there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name, re.ASCII):
        raise UserError(f"device: {name!r} is unknown, use auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device: {name} asked for; GPUs here: {torch.cuda.device_count()}")
    return device


def data_of(
    config: Config,
    data: Dataset | None = None,
    *,
    device: torch.device | None = None,
    progress: Progress = silent,
    warn: Callable[[str], None] = warnings.warn,
) -> Dataset:
    """Load the data as the model sees them, by :func:`sft_rl.pretrained.pictures.load_pictures`."""
    scale = config.sampler.guidance_scale
    pipeline = Pipeline(config.pretrained, config.model, config.noise, scale)
    more: dict[str, Any] = {"device": device, "progress": progress, "warn": warn}
    return load_pictures(config.data, config.prompts, pipeline, data, **more)


def network_of(config: ResolvedConfig, own: nn.Module | None = None) -> nn.Module:
    """Build the denoising network, without its weights.

    Args:
        config: The run's configuration.
        own: The network itself, where Python hands it over (`model.kind=own`); it is copied.
    """
    if own is not None:
        return OwnNetwork(copy.deepcopy(own), config.samples.shape, config.samples.table)
    return noise_network(config.model, config.noise, config.samples.shape, config.samples.table)


def schedule_of(config: Config) -> StepSchedule:
    """Build the few-step schedule.

    Raises:
        UserError: If it does not go with the model's path or prediction.
    """
    prediction = Prediction.from_config(config.model)
    return step_schedule(path_of(config.noise), config.sampler, prediction)


def exploring_schedule_of(config: Config) -> StepSchedule | None:
    """Build the noisier steps that the algorithm explores by; None if there are none."""
    explored = algorithm_of(config).exploration(config.sampler.num_steps)
    if explored is None:
        return None
    sampler = config.sampler.model_copy(update={"eta": explored[1]})
    return schedule_of(config.model_copy(update={"sampler": sampler}))


def policy_of(
    config: ResolvedConfig, network: nn.Module, *, explores: bool = False
) -> DenoisingPolicy:
    """Put the few-step sampler around a denoising network, and under `policy.lora` an adapter.

    Args:
        config: The run's configuration.
        network: The denoising network.
        explores: Whether it gets the steps that the algorithm explores by, too.
    """
    if config.policy.lora.rank is not None:
        network = Adapted(network, config.policy.lora, seed=config.seed)
    return DenoisingPolicy(
        network,
        schedule_of(config),
        shape=config.samples.shape,
        learn_std=config.sampler.learn_std,
        log_prob_reduction=config.policy.log_prob_reduction,
        num_classes=config.model.num_classes,
        noisier=exploring_schedule_of(config) if explores else None,
    )


def critic_of(config: ResolvedConfig, *, batch_size: int | None = None) -> Critic:
    """Build the critic.

    Args:
        config: The run's configuration.
        batch_size: Samples of a critic step, if not the run's own.
    """
    latents = config.samples.latents if config.critic.space == "pixels" else None
    critic = build_critic(
        config.critic,
        config.samples.shape if latents is None else latents.image_shape,
        batch_size=batch_size or config.training.batch_size,
        num_classes=config.model.num_classes,
        num_conditions=config.samples.num_conditions,
        prompt_width=config.samples.prompt_width,
        own=config.options,
    )
    if latents is None:
        return critic
    from sft_rl.critics.pixels import InPixels  # here, since few need it

    return InPixels(critic, latents)


def seeded_critic(config: ResolvedConfig, *, batch_size: int | None = None) -> Critic:
    """Build a critic that starts from the run's seed."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(config.seed, "critic and value weights"))
        return critic_of(config, batch_size=batch_size)


def value_of(config: ResolvedConfig) -> nn.Module:
    """Build the baseline's network."""
    return value_network(
        config.value,
        config.samples.shape,
        num_steps=config.sampler.num_steps,
        num_classes=config.model.num_classes,
        num_conditions=config.samples.num_conditions,
        prompt_width=config.samples.prompt_width,
    )


def algorithm_of(config: Config) -> Algorithm:
    """Build the algorithm, with its options."""
    kind = algorithm_class(config.algorithm)
    if is_reference(config.algorithm):
        return kind(own_options(kind, config.options), config.training)
    return kind(getattr(config, config.algorithm), config.training)


def objective_of(
    config: ResolvedConfig,
    reward: OwnReward = None,
    *,
    data: Dataset | None = None,
    device: torch.device | str = "cpu",
    remote: Remote | None = None,
) -> Objective:
    """Build what a run maximises, by :func:`sft_rl.rewards.build.build_objective`.

    Args:
        config: The run's configuration.
        reward: What Python hands over.
        data: The run's data, for rewards that want them.
        device: Where networks are.
        remote: Starts the scorers of terms that want Ray actors; without it they are built here.
    """
    return build_objective(
        config.reward,
        {} if reward is None else handed_over(reward)[1],
        options=config.options,
        data=data,
        remote=remote,
        units=Units(config.samples),
        num_classes=config.model.num_classes,
        device=device,
    )


def networks_of(
    config: ResolvedConfig, network: nn.Module, objective: Objective | None = None
) -> Networks:
    """Build policy, critic and value; the last two start from the run's seed.

    All are in evaluation mode: they score and sample. Critic and value leave it for their own
    updates only.

    Args:
        config: The run's configuration.
        network: The full-step network, on its device.
        objective: What is maximised; none is the critic alone.
    """
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(config.seed, "critic and value weights"))
        critic = critic_of(config) if config.reward.uses_critic else Critic()
        value = value_of(config)
    for judge in (critic, value):
        keep_prompts(judge, getattr(network, "prompts", None))
    device = next(network.parameters()).device
    policy = policy_of(config, network, explores=True).to(device)
    if config.model.compile:
        policy.network.compile()  # in place: names in state dicts stay
        for part in critic.modules():
            if isinstance(part, NetworkCritic):
                part.compile()
    pretrained = copy.deepcopy(policy).requires_grad_(False)
    if isinstance(pretrained.network, Adapted):
        pretrained.network.switch_off()
    return Networks(
        policy=policy,
        critic=critic.to(device).eval(),
        value=value.to(device).eval(),
        pretrained=pretrained,
        objective=objective or Objective(),
    )


def full_step_network(
    config: ResolvedConfig,
    data: Dataset,
    *,
    own: nn.Module | None = None,
    device: torch.device | None = None,
    progress: Progress = silent,
    warn: Callable[[str], None] = warnings.warn,
) -> tuple[nn.Module, bool]:
    """Return the full-step network: handed over, loaded, from the cache, or trained now.

    Under `sampler.guidance_scale` it is the one that makes the guided prediction in one call.

    Returns:
        The network on its device, in evaluation mode, and whether it was there already.
    """
    device = device or resolve_device(config.device)
    parts: dict[str, Any] = {
        "model": config.model,
        "noise": config.noise,
        "pretraining": config.pretraining,
        "data": data,
        "progress": progress,
        "warn": warn,
    }
    with num_threads(config.learner.num_threads):
        if own is not None:
            network, there = network_of(config, own).to(device).eval(), True
            keep_conditions(network, data)
        else:
            network, there = pretrained_network(
                pretrained=config.pretrained, device=device, **parts
            )
        if config.sampler.guidance_scale != 1.0:
            network = guided_network(network, config.sampler.guidance_scale, **parts)
    return network, there


def full_step_key(config: ResolvedConfig, data: Dataset) -> str:
    """Hash of all settings that determine the full-step network and what is measured of it."""
    key = pretrained_key(
        model=config.model,
        noise=config.noise,
        pretraining=config.pretraining,
        pretrained=config.pretrained,
        data=data,
    )
    return hash_of(
        key
        | {
            "metrics": config.metrics.model_dump(),
            "sampler": [config.model.clip_x0, config.noise.variance],
            "guidance": [config.sampler.guidance_scale, config.pretraining.guidance_iterations],
        }
    )


def measured_full_step(
    config: ResolvedConfig,
    network: nn.Module,
    evaluator: Evaluator,
    *,
    warn: Callable[[str], None] = warnings.warn,
    progress: Progress = silent,
) -> FullStep:
    """Measure the full-step sampler, or find in the cache what was measured."""
    with num_threads(config.learner.num_threads):
        return measure_full_step(
            network,
            evaluator,
            path=path_of(config.noise),
            prediction=Prediction.from_config(config.model),
            variance=config.noise.variance,
            num_classes=config.model.num_classes,
            warn=warn,
            progress=progress,
        )


def learner_of(
    config: ResolvedConfig, networks: Networks, data: Dataset, *, team: Team | None = None
) -> Learner:
    """Build the learner of a run's networks."""
    return Learner(
        networks,
        algorithm_of(config),
        data=data,
        training=config.training,
        optimisation=Optimisation(config.policy, config.critic, config.value),
        seed=config.seed,
        team=team,
    )


def rollout_device(config: Config) -> torch.device:
    """Where trajectories are drawn."""
    if config.rollout.num_workers == 0:  # this process, so the learner's device
        return resolve_device(config.device)
    return torch.device("cuda" if config.rollout.num_gpus_per_worker > 0 else "cpu")
