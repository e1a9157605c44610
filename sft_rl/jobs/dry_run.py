"""What a run will need, before it starts: parameters, batch sizes and memory."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sft_rl.algorithms import Algorithm, Networks
from sft_rl.config import Config, LearnerConfig, ResolvedConfig, TrainingConfig
from sft_rl.config.extensions import is_reference
from sft_rl.critics import Critic
from sft_rl.critics.pixels import InPixels
from sft_rl.data import Dataset
from sft_rl.errors import UserError
from sft_rl.networks.lora import Adapted
from sft_rl.networks.mlp import num_parameters
from sft_rl.policy import DenoisingPolicy
from sft_rl.runs.parts import algorithm_of, network_of, networks_of, resolve_device
from sft_rl.runs.resolve import resolve
from sft_rl.types import Progress, given, silent

GIB = 2**30
FLOAT = 4
COPIES = 4
"""The policy in training, its average, its best state and the pretrained one, of any run."""
ADAM = 3
"""Gradient and two moments of every parameter in training."""
LIBRARIES, DIFFUSERS, RAY = GIB // 2, GIB // 8, GIB // 10
"""What Python, torch and the rest take for themselves in main memory; what networks of images need
besides; and Ray (benchmarks.memory)."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Requirements:
    """What a run will need.

    Attributes:
        rows: For people, by name.
        num_bytes: Memory that its learner takes at most.
    """

    rows: dict[str, str]
    num_bytes: int


def dry_run(
    config: Config,
    *,
    data: Dataset | None = None,
    progress: Progress = silent,
    warn: Callable[[str], None] = warnings.warn,
) -> dict[str, str]:
    """Say what a run will need; return the rows of a table.

    Everything is checked as for the run itself, but a model on the hub, which is not fetched.

    Args:
        config: The settings.
        data: The data, where Python hands them over.
        progress: Is told how many pictures are decoded.
        warn: Is told what will be left out or cut.
    """
    resolved, data = resolve(config, data=data, fetch=False, progress=progress, warn=warn)
    there = memory_of(resolve_device(resolved.device))
    rows = requirements_of(resolved, resolved.training.micro_batch_size).rows
    model = resolved.model
    if model.kind == "unet" and "block_out_channels" in model.unet:
        widths, size = model.unet["block_out_channels"], resolved.samples.shape[-1]
        coarsest = size // 2 ** (len(widths) - 1)
        rows["U-Net"] = f"{', '.join(map(str, widths))} channels at {size} to {coarsest} pixels"
    return {
        **data.description,
        **rows,
        "updates": f"{resolved.training.micro_batch_size or 'all'} rows at a time",
        "memory, there": f"{there / GIB:.2f} GiB",
    }


def memory_of(device: torch.device) -> int:
    """Bytes of memory that a device has; of a CPU what the machine, or the container, allows."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else "max"
    return there if limit == "max" else min(there, int(limit))


def check_memory(config: ResolvedConfig, *, available: int | None = None) -> None:
    """Refuse a run that does not fit, and say which setting would.

    Args:
        config: The run's configuration.
        available: Bytes of memory; by default those of the learner's device.

    Raises:
        UserError: With the largest micro-batch that fits, or what else may.
    """
    if available is None:
        available = memory_of(resolve_device(config.device))
    training = config.training
    needed = requirements_of(config, training.micro_batch_size).num_bytes
    if needed <= available:
        return
    splits = algorithm_of(config).splits_batches
    rows = (training.micro_batch_size or training.batch_size) // 2 if splits else 0
    while rows and requirements_of(config, rows).num_bytes > available:
        rows //= 2
    alone = training.model_copy(update={"batch_size": 1})
    least = requirements_of(config.model_copy(update={"training": alone}), 1).num_bytes
    if rows:
        fits = f"training.micro_batch_size={rows} does fit"
    elif least <= available:
        fits = "a smaller training.batch_size may fit"
    else:
        fits = (
            f"a batch of one needs {_gib(least)}: take a smaller network, or several learners that "
            "split it (learner.strategy=fsdp)"
        )
    raise UserError(
        f"training.batch_size: an iteration needs {_gib(needed)} of memory, there are "
        f"{_gib(available)}; {fits}"
    )


def object_bytes(config: ResolvedConfig, own: nn.Module | None = None) -> int:
    """Bytes of a run in Ray's object store that are there at the same time.

    They are the versions of the weights in flight, and the one that is just written; and the
    trajectories of an iteration, twice, for they are copied out one by one.

    Args:
        config: The run's configuration.
        own: The network, where Python hands it over.
    """
    training, num_steps = config.training, config.sampler.num_steps
    with torch.device("meta"):
        weights = FLOAT * num_parameters(own if own is not None else network_of(config))
    kept = num_steps + 1 + algorithm_of(config).looks_ahead * num_steps
    dtype: torch.dtype = getattr(torch, config.rollout.latent_dtype)
    latent = kept * math.prod(config.samples.shape) * dtype.itemsize
    chain = latent + FLOAT * num_steps
    ahead = 1 + training.max_offpolicy_steps
    return (2 + ahead) * weights + 2 * ahead * training.n_critic * training.batch_size * chain


def requirements_of(config: ResolvedConfig, micro_batch_size: int | None) -> Requirements:
    """What a run needs with updates of so many rows at a time."""
    training = config.training.model_copy(update={"micro_batch_size": micro_batch_size})
    config = config.model_copy(update={"training": training})
    with torch.device("cpu" if _has_own_networks(config) else "meta"):
        networks = networks_of(config, network_of(config))
    on_cpu = resolve_device(config.device).type == "cpu"
    is_images = config.samples.pixel_max is not None
    libraries = LIBRARIES + DIFFUSERS * is_images + RAY * config.uses_ray
    return requirements(
        networks,
        algorithm_of(config),
        training,
        learner=config.learner,
        draws_here=config.rollout.num_workers == 0,
        libraries=libraries * on_cpu,
    )


def _has_own_networks(config: ResolvedConfig) -> bool:
    """Whether some are a user's code, which is called with numbers: not all runs without."""
    made = (config.model.factory, config.critic.factory, config.value.factory)
    return any(made) or is_reference(config.critic.objective)


def requirements(
    networks: Networks,
    algorithm: Algorithm,
    training: TrainingConfig,
    *,
    learner: LearnerConfig,
    draws_here: bool,
    libraries: int = 0,
) -> Requirements:
    """Say what a run will need; nothing is trained or written.

    Memory is that of tensors which live at the same time; activations are counted by running
    the networks without data. It leaves out passes that keep nothing for the way back, and the
    copy of the transitions that a policy step draws.

    Args:
        networks: Policy, critic and value, on the meta device or the CPU.
        algorithm: Says what a policy step keeps.
        training: Batch sizes.
        learner: How many share the work, and whether they split the networks.
        draws_here: Whether the learner's process draws, with a policy of its own.
        libraries: Bytes that libraries take for themselves.
    """
    policy = networks.policy
    num_steps, shape = policy.num_steps, policy.shape
    counts = {
        "policy": num_parameters(policy),
        "critic": num_parameters(networks.critic),
        "value": num_parameters(networks.value),
    }
    at_rest = sum(p.numel() for p in policy.parameters() if not p.requires_grad)
    weights, optimizers, whole = _held(networks, algorithm, training, learner, draws_here)
    kept = num_steps + 1 + algorithm.looks_ahead * num_steps  # latents, and what was expected
    a_batch = FLOAT * kept * training.batch_size * math.prod(shape)
    stored = training.n_critic * a_batch
    # Several batches are joined for the policy step; one of a warm-up replaces that before it.
    drawn = 2 * stored if training.n_critic > 1 else stored + a_batch
    forwards, batch = algorithm.kept_calls(num_steps)
    activations = _activations(networks, algorithm, training, num_learners=learner.num_workers)
    tensors = weights + optimizers + max(stored + max(activations.values()), drawn, whole)
    total = libraries + tensors
    rows_of_table = {
        "samples": "x".join(str(n) for n in shape),
        **{f"parameters, {name}": f"{count:,}" for name, count in counts.items()},
        **({"parameters, adapter": f"{counts['policy'] - at_rest:,}"} if at_rest else {}),
        "trajectories an iteration": f"{training.n_critic} x {training.batch_size}",
        "policy steps an iteration": str(training.n_generator),
        "network calls kept for a policy step": f"{forwards} of {batch} latents",
        "memory, weights": _gib(weights),
        "memory, optimisers": _gib(optimizers),
        "memory, trajectories": _gib(stored),
        **{f"memory, activations of a {k} step": _gib(v) for k, v in activations.items()},
        **({"memory, libraries": _gib(libraries)} if libraries else {}),
        "memory, all": _gib(total),
    }
    return Requirements(rows_of_table, total)


def _held(
    networks: Networks,
    algorithm: Algorithm,
    training: TrainingConfig,
    learner: LearnerConfig,
    draws_here: bool,
) -> tuple[int, int, int]:
    """Bytes of a learner's weights, of gradients and moments, and of what is whole at the ends.

    Learners that split networks hold a part; they begin and end with two whole policies, though.
    """
    policy, critic, value = networks.policy, networks.critic, networks.value
    num = learner.num_workers if learner.strategy == "fsdp" else 1
    own = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    judges = num_parameters(critic) // (1 if critic.differentiates_twice else num)
    of_value = num_parameters(value) // num
    is_adapted = isinstance(policy.network, Adapted)
    copies, part = COPIES + training.max_offpolicy_steps, 1 if is_adapted else num
    weights = FLOAT * (own * copies // part + own * draws_here + judges + of_value)
    if isinstance(policy.network, Adapted):  # weights at rest are there once for all copies
        at_rest = policy.network.bytes_at_rest
        weights += at_rest // num + at_rest * draws_here
    trained = own // part + judges + of_value * algorithm.uses_value
    return weights, FLOAT * ADAM * trained, 2 * FLOAT * own * (num > 1)


def _activations(
    networks: Networks, algorithm: Algorithm, training: TrainingConfig, *, num_learners: int
) -> dict[str, int]:
    """Bytes that an update of each network keeps for the way back, of a learner's own rows."""
    policy, critic, value = networks.policy, networks.critic, networks.value
    rows = training.micro_batch_size

    def own(num: int) -> int:
        return -(-min(num, rows or num) // num_learners)

    forwards, batch = algorithm.kept_calls(policy.num_steps)
    found = {"policy": forwards * activation_bytes(policy, -(-batch // num_learners))}
    if isinstance(critic, InPixels):
        found["policy"] += kept_bytes(partial(_seen, critic, policy), critic, critic.at_once)
    if num_parameters(critic):
        size = own(training.batch_size)
        found["critic"] = kept_bytes(partial(_critic_loss, critic, policy), critic, size)
    if algorithm.uses_value:
        size = own(training.batch_size * policy.num_steps)
        found["value"] = kept_bytes(partial(_values, value, policy), value, size)
    return found


def activation_bytes(policy: DenoisingPolicy, batch: int) -> int:
    """Bytes that one call of a policy keeps for the way back."""

    def predict(num: int) -> None:
        latents, labels = _rows(policy, num)
        policy.network(latents, latents.new_zeros(num), *labels)

    return kept_bytes(predict, policy, batch)


def _rows(policy: DenoisingPolicy, num: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Latents without data, and labels if the model takes any."""
    latents = torch.zeros(num, *policy.shape, device=policy.device)
    return latents, given(policy.blank_labels(num))


def _critic_loss(critic: Critic, policy: DenoisingPolicy, num: int) -> None:
    samples, labels = _rows(policy, num)
    critic.loss(samples, samples, torch.Generator(), *labels)


def _seen(critic: Critic, policy: DenoisingPolicy, num: int) -> None:
    samples, labels = _rows(policy, num)
    critic(samples.requires_grad_(), *labels)


def _values(value: nn.Module, policy: DenoisingPolicy, num: int) -> None:
    states, labels = _rows(policy, num)
    value(states, states.new_zeros(num, dtype=torch.int64), *labels)


def kept_bytes(call: Callable[[int], None], module: nn.Module, batch: int) -> int:
    """Bytes that a call of a module keeps for the way back.

    Counted on one and two rows, since they grow in proportion.

    Args:
        call: Calls the module with a number of rows.
        module: Its parameters are not counted.
        batch: How many rows to count for.
    """
    one, two = (_saved_bytes(partial(call, num), module) for num in (1, 2))
    return one + (two - one) * (batch - 1)


def _saved_bytes(call: Callable[[], None], module: nn.Module) -> int:
    own = {id(p) for p in module.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        base = tensor._base if tensor._base is not None else tensor
        if id(base) not in own and not isinstance(base, nn.Parameter):
            sizes[id(base)] = base.numel() * base.element_size()
            kept.append(base)  # so that no other tensor gets its id
        return tensor

    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(sizes.values())


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB"
