"""What cannot work is refused, by its field, before anything starts."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sft_rl.algorithms import ALGORITHMS
from sft_rl.config import Config, ResolvedConfig
from sft_rl.config.extensions import is_reference, load_object
from sft_rl.critics import check_objective
from sft_rl.data import Dataset, check_labels
from sft_rl.diffusion.schedule import StepSchedule
from sft_rl.errors import UserError
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.networks.own import check_network, made_module
from sft_rl.rewards import Objective, OwnReward
from sft_rl.runs.parts import (
    algorithm_of,
    critic_of,
    exploring_schedule_of,
    network_of,
    objective_of,
    policy_of,
    resolve_device,
    rollout_device,
    schedule_of,
    value_of,
)
from sft_rl.storage.state import declared_state


def check(
    config: ResolvedConfig,
    data: Dataset,
    *,
    network: nn.Module | None = None,
    reward: OwnReward = None,
    trains: bool = True,
) -> None:
    """Refuse what cannot work; arguments as of :func:`sft_rl.runs.resolve.resolve`.

    Raises:
        UserError: Naming the field, what was given and what is allowed.
    """
    check_settings(config, trains=trains)
    if config.samples.latents is None:
        _check_no_latents(config)
    batch = config.training.batch_size
    if trains and data.units.is_images and len(data.train) < batch:
        raise UserError(
            f"training.batch_size: {batch}, but there are {len(data.train)} training images beside "
            "those held out; take at most as many"
        )
    Evaluator(data, config.metrics)
    with torch.device("meta"):  # networks refuse samples of a shape that they do not take
        if network is None:
            policy_of(config, network_of(config))
        if config.reward.uses_critic:
            critic_of(config)
        value_of(config)
    if trains:
        objective = objective_of(config, reward, data=data, remote=lambda *_: torch.zeros)
        _check_objective(config, objective, data)
    path, num_classes = config.pretrained.path, config.model.num_classes
    field = f"pretrained.path: {path}" if path else "model.unet.num_class_embeds: the model"
    check_labels(data, num_classes=num_classes, field=field)
    if config.model.kind == "own":
        factory = config.model.factory
        check_network(
            network or made_module("model.factory", str(factory)),
            config.samples.shape,
            field="network" if network is not None else f"model.factory: {factory}",
            num_classes=num_classes,
            num_conditions=config.samples.num_conditions,
        )


def _check_no_latents(config: ResolvedConfig) -> None:
    """Refuse what goes with latents alone."""
    for field, given, off in (
        ("critic.space", config.critic.space, "latents"),
        ("pretrained.vae_tiling", config.pretrained.vae_tiling, False),
    ):
        if given != off:
            raise UserError(
                f"{field}: {given} needs a pipeline of latents in pretrained.path; the samples of "
                f"this run have no autoencoder, leave it at {off}"
            )


def check_settings(config: Config, *, trains: bool = True) -> None:
    """Refuse what cannot work whatever the data are; a part of :func:`check`.

    Raises:
        UserError: Naming the field, what was given and what is allowed.
    """
    resolve_device(config.device)
    check_objective(
        config.critic.objective,
        is_conditional=bool(config.model.num_classes or config.data.condition_columns),
    )
    _check_null_class(config)
    schedule = schedule_of(config)
    if config.model.kind == "sd3" and schedule.input_scale is not None:
        _check_start(config, schedule.input_scale[0])
    num_steps, own = config.metrics.full_step, config.noise.num_train_timesteps
    if isinstance(num_steps, int) and num_steps > own:
        raise UserError(
            f"metrics.full_step: the model has {own} steps, got {num_steps}; take at most as many, "
            "all or off"
        )
    if trains:
        _check_algorithm(config, schedule)
    _check_system(config)


def _check_start(config: Config, scale: float) -> None:
    """Refuse a start that the pipeline, which starts from N(0, I), could not have."""
    if not math.isclose(scale, 1.0):
        last = config.noise.num_train_timesteps - 1
        raise UserError(
            "sampler.start_time: a pipeline of flow matching starts from pure noise, got "
            f"{config.sampler.start_time or config.sampler.timesteps}; start at {last}"
        )


def _check_null_class(config: Config) -> None:
    """Refuse what needs a label that stands for no class, where the model has none."""
    if config.model.null_class and config.model.num_classes:
        return
    scale, dropout = config.sampler.guidance_scale, config.pretraining.label_dropout
    for field, given, off in (
        ("sampler.guidance_scale", scale, 1.0),
        ("pretraining.label_dropout", dropout, 0.0),
        ("model.null_class", config.model.null_class, False),
    ):
        if given != off:
            raise UserError(
                f"{field}: {given} needs a model of classes whose last label stands for none "
                f"(model.null_class=true, with one more than the data's classes); leave it at {off}"
            )


def _check_algorithm(config: Config, schedule: StepSchedule) -> None:
    algorithm, training, name = algorithm_of(config), config.training, config.algorithm
    if algorithm.baseline == "group" and config.rollout.group_size == 1:
        raise UserError(
            f"rollout.group_size: the baseline 'group' of algorithm {name!r} needs groups; "
            "set it above 1"
        )
    steps = algorithm.density_steps(len(schedule), config.rollout.branch_step)
    if (exploring := exploring_schedule_of(config)) is not None:
        _check_exploration(config)
        schedule = exploring
        if config.rollout.branch_step == "cycle":  # a last step without noise is passed over
            steps = range(max(int((schedule.std > 0).sum()), 1))
    std = schedule.std[steps.start : steps.stop]
    if (std <= 0).any():
        raise UserError(
            f"sampler.eta and sampler.final_std: algorithm {name!r} needs noise in steps "
            f"{steps.start} to {steps.stop - 1}, got std {schedule.std.round(4).tolist()}; "
            "set both above 0, or use algorithm=pathwise or nft"
        )
    rounding = torch.finfo(getattr(torch, config.rollout.latent_dtype)).eps / 2
    smallest = std.min(initial=math.inf)
    if smallest < rounding:
        raise UserError(
            f"rollout.latent_dtype: {config.rollout.latent_dtype} rounds latents near 1 by up to "
            f"{rounding:.2g}, more than the noise {smallest:.2g} of a step, on which a policy "
            "gradient relies; use a wider type, a larger sampler.final_std, or algorithm=pathwise"
        )
    num_rows = algorithm.num_rows(training.batch_size * training.n_critic, len(schedule))
    if training.n_generator > num_rows:
        raise UserError(
            f"training.n_generator: {training.n_generator} policy steps share {num_rows} rows of "
            f"an iteration under algorithm {name!r}; take at most as many"
        )
    if training.max_offpolicy_steps > 1 and not algorithm.weighs_by_ratio:
        raise UserError(
            f"training.max_offpolicy_steps: algorithm {name!r} does not weigh all that it learns "
            f"from by likelihood ratios, got {training.max_offpolicy_steps}; take 0 or 1, or "
            "algorithm=sft_pg, ppo or grpo"
        )
    if training.micro_batch_size is not None and not algorithm.splits_batches:
        raise UserError(
            f"training.micro_batch_size: algorithm {name!r} does not split its batches; leave it "
            "out, or see Algorithm.splits_batches"
        )


def _check_exploration(config: Config) -> None:
    field = f"{config.algorithm}.window_eta"
    if config.sampler.learn_std:
        raise UserError(
            f"{field}: its noise is for drawing alone and not learned; set sampler.learn_std=false"
        )
    if config.rollout.cuda_graphs:
        raise UserError(f"{field}: goes without rollout.cuda_graphs, which draws one way alone")


def _check_objective(config: ResolvedConfig, objective: Objective, data: Dataset) -> None:
    """Refuse a reward without a gradient that is needed; let those here score two real samples."""
    samples = data.batch(2, torch.Generator().manual_seed(0))
    labels: tuple[Tensor, ...] = ()
    if config.model.num_classes:
        labels = (torch.zeros(len(samples), dtype=torch.int64),)
    elif data.conditions is not None:
        labels = (data.conditions[: len(samples)],)
    is_elsewhere = any(term.config.is_elsewhere for term in objective.terms)
    scores_ahead = is_elsewhere and config.rollout.num_workers > 0
    for term in objective.rewards:
        field = f"reward: {term.config.name!r}"
        assert term.score is not None
        if declared_state(term.owner) and scores_ahead:
            raise UserError(
                f"{field} keeps a state, which needs shards in their order, but beside a term that "
                "is scored elsewhere they are scored as they come; set rollout.num_workers=0"
            )
        x = samples.clone().requires_grad_(term.has_gradient)
        scores = x[:, 0] if term.config.uses_ray else term.score(x, *labels)
        if term.has_gradient and not scores.requires_grad:
            raise UserError(f"{field} says has_gradient, but what it returns has none")
        if term.config.weight and not term.has_gradient and algorithm_of(config).needs_gradient:
            raise UserError(
                f"{field} has no gradient, which algorithm={config.algorithm} learns by; set "
                "has_gradient = True on it if it has, or use sft_pg, ppo, grpo, nft or hybrid"
            )


def _check_system(config: Config) -> None:
    batch, parts = config.training.batch_size, config.rollout.shards_per_batch
    if batch % parts:
        raise UserError(
            f"rollout.shards_per_batch: must divide training.batch_size {batch}, got {parts}"
        )
    _check_groups(config)
    if config.rollout.labels and config.rollout.num_workers == 0:
        raise UserError(
            "rollout.labels: there is no worker to place by them, rollout.num_workers is 0; set it "
            "above 0, or leave them out"
        )
    if config.learner.num_workers > 1 and config.learner.launcher == "local":
        raise UserError(
            f"learner.num_workers: {config.learner.num_workers} learners need "
            "learner.launcher=ray_train, got 'local'"
        )
    if config.learner.callbacks and config.learner.launcher == "local":
        raise UserError(
            "learner.callbacks: they are Ray Train's, so they need learner.launcher=ray_train, got "
            "'local'"
        )
    for name in config.learner.callbacks:
        load_object("learner.callbacks", name)
    if config.learner.strategy == "fsdp":
        _check_fsdp(config)
    if config.rollout.cuda_graphs and rollout_device(config).type != "cuda":
        raise UserError(
            "rollout.cuda_graphs: needs rollouts on a GPU, these are on the CPU; see device and "
            "rollout.num_gpus_per_worker"
        )
    if config.model.compile and config.learner.num_workers > 1:
        raise UserError(
            "model.compile: goes with one learner, not with learner.num_workers above 1"
        )


def _check_fsdp(config: Config) -> None:
    if config.learner.num_workers == 1:
        raise UserError(
            "learner.strategy: fsdp splits networks over learners, and there is one; set "
            "learner.num_workers above 1, with learner.launcher=ray_train"
        )
    if is_reference(config.algorithm):
        raise UserError(
            f"learner.strategy: fsdp does not go with algorithm={config.algorithm}, which may keep "
            f"networks and optimisers of its own; it goes with {', '.join(ALGORITHMS)}"
        )


def _check_groups(config: Config) -> None:
    rollout, num_steps = config.rollout, config.sampler.num_steps
    size, branch = rollout.group_size, rollout.branch_step
    shard = config.training.batch_size // rollout.shards_per_batch
    if shard % size:
        raise UserError(
            f"rollout.group_size: must divide a shard of {shard} trajectories "
            f"(training.batch_size / rollout.shards_per_batch), got {size}"
        )
    if branch == 0:
        return
    if size == 1:
        raise UserError(
            f"rollout.branch_step: {branch!r} parts groups; set rollout.group_size above 1"
        )
    if branch != "cycle" and branch >= num_steps:
        raise UserError(
            f"rollout.branch_step: must be 0 to {num_steps - 1}, the last of "
            f"sampler.num_steps={num_steps}, or 'cycle', got {branch}"
        )
    if rollout.cuda_graphs:
        raise UserError(
            "rollout.branch_step: rollout.cuda_graphs draws all steps at one go, so groups part at "
            f"the start, 0, got {branch!r}"
        )
