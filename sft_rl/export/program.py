"""A few-step sampler as one program of `torch.export`, for networks of any kind."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sft_rl.data.units import Units
from sft_rl.errors import UserError, first_line
from sft_rl.networks.lora import inner_of, merged
from sft_rl.policy import DenoisingPolicy

if TYPE_CHECKING:
    from torch.export import ExportedProgram

MOST_OF_DIFFUSERS = 63
"""Samples at a time, as the U-Nets of diffusers take another way from 64 on."""


class SamplerModule(nn.Module):
    """Noise, and what samples are conditional on, to samples in T network calls.

    Args:
        policy: The chain of denoising steps.
        units: From model units to the data's own.
    """

    def __init__(self, policy: DenoisingPolicy, units: Units) -> None:
        super().__init__()
        self.policy = policy
        self.pixel_max = units.samples.pixel_max
        self.register_buffer("scale", units.scale)
        self.register_buffer("shift", units.shift)
        known = units.samples.conditions
        self.of_vectors = known is not None
        if known is not None:
            self.register_buffer("condition_scale", torch.tensor(known.scale, dtype=torch.float64))
            self.register_buffer("condition_shift", torch.tensor(known.shift, dtype=torch.float64))

    def forward(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Draw samples in the data's units.

        Args:
            noise: Standard normal, shape (B, T + 1, *shape): the start, and that of each step.
            condition: Classes (B,), int64, or vectors (B, D) in their own units; None without any.

        Returns:
            Shape (B, *shape); of images pixel values, cut to their range, not rounded.
        """
        if condition is not None and self.of_vectors:
            shifted = condition - self.get_buffer("condition_shift")
            condition = (shifted / self.get_buffer("condition_scale")).float()
        latents, policy = noise[:, 0], self.policy
        for k in range(policy.num_steps):
            index = torch.tensor(k, device=noise.device)
            mean = policy.mean(latents, index, condition)
            latents = mean + policy.step_std(index) * noise[:, k + 1]
        samples = latents * self.get_buffer("scale") + self.get_buffer("shift")
        return samples if self.pixel_max is None else samples.clamp(0, self.pixel_max)


def to_program(policy: DenoisingPolicy, units: Units) -> ExportedProgram:
    """Trace a sampler into a program that needs torch alone.

    It takes batches of any size, of a U-Net of diffusers up to 63, since those branch there.

    Raises:
        UserError: If `torch.export` does not understand its network.
    """
    noise = torch.zeros(2, policy.num_steps + 1, *policy.shape, device=policy.device)
    condition = policy.blank_labels(2)
    arguments = {"noise": noise} if condition is None else {"noise": noise, "condition": condition}
    is_of_diffusers = hasattr(inner_of(policy.network), "config")
    batch = torch.export.Dim("batch", max=MOST_OF_DIFFUSERS if is_of_diffusers else None)
    whole = copy.copy(policy)  # another network in it, and all else its own
    whole._modules = {**policy._modules, "network": merged(policy.network)}
    module = SamplerModule(whole, units).to(policy.device).eval().requires_grad_(False)
    try:
        return torch.export.export(
            module, (), arguments, dynamic_shapes={name: {0: batch} for name in arguments}
        )
    except Exception as error:  # whatever torch says of somebody else's code
        raise UserError(
            f"export: torch.export does not understand this sampler's network: {first_line(error)}"
        ) from error


def program_usage(policy: DenoisingPolicy) -> str:
    """The lines that load a program and draw from it."""
    size = ", ".join(map(str, (16, policy.num_steps + 1, *policy.shape)))
    condition, blank = "", policy.blank_labels(16)
    if blank is not None:
        kind = "" if policy.conditions is not None else ", dtype=torch.int64"
        condition = f", condition=torch.zeros({tuple(blank.shape)}{kind})"
    return (
        "import torch\n\n"
        'sampler = torch.export.load("sampler.pt2").module()\n'
        f"noise = torch.randn({size})  # the start, then that of each step\n"
        f"samples = sampler(noise=noise{condition})"
    )
