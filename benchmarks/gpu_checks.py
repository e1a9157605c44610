"""What a GPU computes is what a CPU computes, before anybody asks how fast: `benchmarks.gpu`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sft_rl.policy import DenoisingPolicy
from sft_rl.rollout.cuda_graphs import GraphedChain

TOLERANCES = {
    "predicted noise, off the CPU's": 1e-3,
    "CUDA graph, off eager steps": 0.0,
    "the same samples again, off": 0.0,
    "TF32, likelihood ratio off 1": 0.05,
}
"""Largest deviation that passes; latents have a standard deviation of 1."""


def deviations(policy: DenoisingPolicy, batch: int) -> dict[str, float]:
    """The largest deviation of each kind, of a policy on its device."""
    with tf32(False):
        again = [_drawn(policy, batch) for _ in range(2)]
        found = {
            "predicted noise, off the CPU's": _off_the_cpu(policy, batch),
            "CUDA graph, off eager steps": _largest(_graphed(policy, batch) - again[0]),
            "the same samples again, off": _largest(again[1] - again[0]),
        }
    return {**found, "TF32, likelihood ratio off 1": _ratio_off(policy, batch)}


def failures(found: dict[str, float]) -> list[str]:
    """What deviates by more than it may; what is no number does, too."""
    return [name for name, value in found.items() if not value <= TOLERANCES[name]]


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let float32 products be TF32 on a GPU, or not, for a while."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def _start(policy: DenoisingPolicy, batch: int) -> tuple[Tensor, torch.Generator]:
    source = torch.Generator(policy.device).manual_seed(0)
    return torch.randn(batch, *policy.shape, generator=source, device=policy.device), source


@torch.inference_mode()
def _off_the_cpu(policy: DenoisingPolicy, batch: int) -> float:
    latents = torch.randn(batch, *policy.shape, generator=torch.Generator().manual_seed(0))
    means = []
    for one in (policy, copy.deepcopy(policy).cpu()):
        steps = torch.arange(batch, device=one.device) % one.num_steps
        means.append(one.network(latents.to(one.device), one.timesteps[steps]).cpu())
    return _largest(means[0] - means[1])


@torch.inference_mode()
def _drawn(policy: DenoisingPolicy, batch: int) -> Tensor:
    start, source = _start(policy, batch)
    *_, final = policy.denoise(start, source)
    return final


def _graphed(policy: DenoisingPolicy, batch: int) -> Tensor:
    return GraphedChain(policy, batch)(*_start(policy, batch))[0][-1]


@torch.inference_mode()
def _ratio_off(policy: DenoisingPolicy, batch: int) -> float:
    """How far ratios are off 1 if a policy draws under TF32 and learns without it."""
    latents, source = _start(policy, batch)
    noise = torch.randn(latents.shape, generator=source, device=policy.device)
    step = torch.tensor(0, device=policy.device)
    with tf32(True):
        drawn = policy.act(latents, step, noise)
    with tf32(False):
        again = policy.log_prob(latents, drawn.action, step)
    return _largest((again - drawn.log_prob).exp() - 1.0)
