"""What a run will need, before it starts: parameters, batch sizes and memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sft_rl.algorithms import build_algorithm
from sft_rl.config import Config
from sft_rl.critics import Critic
from sft_rl.data import load_dataset
from sft_rl.jobs.build import build_networks
from sft_rl.networks import noise_network
from sft_rl.networks.mlp import num_parameters
from sft_rl.policy import DenoisingPolicy
from sft_rl.pretrained.training import with_pretrained
from sft_rl.types import given

GIB = 2**30
FLOAT = 4
COPIES = 4
"""The policy in training, its average, its best state and the pretrained one."""
ADAM = 3
"""Gradient and two moments of every parameter in training."""


def dry_run(config: Config) -> dict[str, str]:
    """Say what a run will need; nothing is downloaded, trained or written.

    Memory is that of tensors which live at the same time; activations are counted by running
    the networks without data. It leaves out what the libraries take for themselves, and passes
    that keep nothing for the way back.

    Raises:
        UserError: If the configuration does not fit together.
    """
    if config.pretrained.path is not None and Path(config.pretrained.path).exists():
        config = with_pretrained(config)  # a model on the hub is not fetched for this
    shape = sample_shape(config)
    with torch.device("meta"):
        network = noise_network(config, shape)
        networks = build_networks(config, network, shape)
    policy, critic, value = networks.policy, networks.critic, networks.value
    training, num_steps = config.training, policy.num_steps
    counts = {
        "policy": num_parameters(policy),
        "critic": num_parameters(critic),
        "value": num_parameters(value),
    }
    trajectories = training.batch_size * training.n_critic
    weights = FLOAT * (COPIES * counts["policy"] + counts["critic"] + counts["value"])
    optimizers = FLOAT * ADAM * sum(counts.values())
    stored = FLOAT * (num_steps + 1) * trajectories * math.prod(shape)
    forwards, batch = _policy_step(config, num_steps)
    activations = {"policy": forwards * activation_bytes(policy, batch)}
    rows = training.micro_batch_size
    if counts["critic"]:
        size = min(training.batch_size, rows or training.batch_size)
        activations["critic"] = kept_bytes(partial(_critic_loss, critic, policy), critic, size)
    if build_algorithm(config).uses_value:
        states = training.batch_size * num_steps
        size = min(states, rows or states)
        activations["value"] = kept_bytes(partial(_values, value, policy), value, size)
    return {
        "samples": "x".join(str(n) for n in shape),
        **{f"parameters, {name}": f"{count:,}" for name, count in counts.items()},
        "trajectories an iteration": f"{training.n_critic} x {training.batch_size}",
        "policy steps an iteration": str(training.n_generator),
        "network calls kept for a policy step": f"{forwards} of {batch} latents",
        "memory, weights": _gib(weights),
        "memory, optimisers": _gib(optimizers),
        "memory, trajectories": _gib(stored),
        **{f"memory, activations of a {k} step": _gib(v) for k, v in activations.items()},
        "memory, all": _gib(weights + optimizers + stored + max(activations.values())),
    }


def sample_shape(config: Config) -> tuple[int, ...]:
    """Shape of one sample; images are not loaded for it."""
    data = config.data
    return data.image_shape if data.is_images else load_dataset(data).shape


def _policy_step(config: Config, num_steps: int) -> tuple[int, int]:
    """How many network calls of how many latents a policy step keeps for the way back."""
    training = config.training
    share = training.batch_size * training.n_critic // training.n_generator
    most = training.micro_batch_size or math.inf
    if config.algorithm == "pathwise":
        options = config.pathwise
        size = int(min(options.chains_per_update or share, share, most))
        num_last = min(options.num_last_steps or num_steps, num_steps)
        return (1 if options.checkpoint_activations else num_last), size
    if config.algorithm == "hybrid":
        return 1, int(min(share, most)) * num_steps
    if config.algorithm == "ppo":
        transitions = training.batch_size * training.n_critic * num_steps
        return 1, int(min(transitions // config.ppo.num_minibatches, most))
    return 1, int(min(config.sft_pg.transitions_per_update or share * num_steps, most))


def activation_bytes(policy: DenoisingPolicy, batch: int) -> int:
    """Bytes that one call of a policy on the meta device keeps for the way back."""

    def predict(num: int) -> None:
        latents, labels = _rows(policy, num)
        policy.network(latents, torch.zeros(num, device="meta"), *labels)

    return kept_bytes(predict, policy, batch)


def _rows(policy: DenoisingPolicy, num: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Latents without data, and labels if there are classes."""
    latents = torch.zeros(num, *policy.shape, device="meta")
    labels = torch.zeros(num, dtype=torch.int64, device="meta") if policy.num_classes else None
    return latents, given(labels)


def _critic_loss(critic: Critic, policy: DenoisingPolicy, num: int) -> None:
    samples, labels = _rows(policy, num)
    critic.loss(samples, samples, torch.Generator(), *labels)


def _values(value: nn.Module, policy: DenoisingPolicy, num: int) -> None:
    states, labels = _rows(policy, num)
    value(states, torch.zeros(num, dtype=torch.int64, device="meta"), *labels)


def kept_bytes(call: Callable[[int], None], module: nn.Module, batch: int) -> int:
    """Bytes that a call of a module on the meta device keeps for the way back.

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
