"""The sampler that a run gave: it draws in the data's units, wherever its folder is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sft_rl.data.units import Array, Units
from sft_rl.errors import UserError
from sft_rl.policy import DenoisingPolicy
from sft_rl.runs.folder import RunFolder
from sft_rl.runs.parts import resolve_device
from sft_rl.runs.remote import open_run
from sft_rl.seeding import generator

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch.export import ExportedProgram


MOST = 10**12
"""Samples at once; torch does not count much further."""


@dataclass(frozen=True)
class Sampler:
    """A few-step sampler with the units of its data.

    Attributes:
        policy: The chain of denoising steps, frozen.
        units: From model units to the data's own.
    """

    policy: DenoisingPolicy
    units: Units

    @property
    def num_steps(self) -> int:
        """Number of denoising steps T, and so of network calls a sample."""
        return self.policy.num_steps

    def sample(
        self, num: int, *, seed: int = 0, label: int | str | None = None, condition: Any = None
    ) -> Array:
        """Draw samples in the data's units.

        Args:
            num: How many.
            seed: Seed of noise and labels; the same seed gives the same samples.
            label: Class of all samples, or the prompt of all, itself or its number; None draws
                them, if the model has any.
            condition: Vector (D,) of all samples, or one for each (num, D), in the units of
                `data.condition_columns`; None takes those of training samples, if it has any.

        Returns:
            Shape (num, *shape); float64, of images uint8.

        Raises:
            UserError: If the number is not positive or beyond all memory, or the model has no such
                class or condition.
        """
        if num < 1:
            raise UserError(f"num: must be at least 1, got {num}")
        if num > MOST:
            raise UserError(f"num: must be at most {MOST:,}, got {num:.3g}")
        policy, labels = self.policy, None
        if isinstance(label, str):
            label = self._number(label)
        if label is not None:
            if not 0 <= label < policy.num_classes:
                has = f"classes 0 to {policy.num_classes - 1}" if policy.num_classes else "none"
                raise UserError(f"label: got {label}, the model has {has}")
            labels = torch.full((num,), label, device=policy.device)
        if condition is not None:
            vectors = self.units.condition_to_model(condition)
            if vectors.ndim == 2 and len(vectors) != num:
                raise UserError(f"condition: {len(vectors)} vectors for {num} samples")
            labels = vectors.expand(num, -1).to(policy.device)
        source = generator(seed, "user", device=policy.device)
        return self.units.to_data(policy.sample(num, source, labels))

    def _number(self, prompt: str) -> int:
        known = self.units.samples.prompts
        if known is None:
            raise UserError(f"label: got {prompt!r}, the model takes no prompts")
        return known.number(prompt, field="label")

    def to_diffusers(self) -> DiffusionPipeline:
        """Return the sampler as a pipeline of diffusers, in this process.

        `sft-rl export` writes one into a folder.

        Raises:
            UserError: If its network is no U-Net of diffusers, or one of latents.
        """
        if self.units.samples.latents is not None:
            raise UserError("diffusers: a sampler of latents needs a folder; use sft-rl export")
        from sft_rl.export.pipeline import to_pipeline  # here, since diffusers is slow to import

        return to_pipeline(self.policy)

    def to_program(self) -> ExportedProgram:
        """Return the sampler as a program of `torch.export`, from noise and condition to samples.

        `sft-rl export` writes one into a folder, of any network but diffusers'.

        Raises:
            UserError: If torch does not understand its network.
        """
        from sft_rl.export.program import to_program

        return to_program(self.policy, self.units)


def load_sampler(place: str | Path, *, network: nn.Module | None = None) -> Sampler:
    """Load the sampler that a run gave; its data are not needed.

    Args:
        place: The run's folder, a path or URL.
        network: A network of the kind that the run had from Python, if it had.

    Raises:
        UserError: If there is no run, or it has saved nothing yet.
    """
    return sampler_of(open_run(place), network)


def sampler_of(store: RunFolder, network: nn.Module | None = None) -> Sampler:
    """Load the sampler of an open run; see :func:`load_sampler`."""
    policy, _ = store.result(network)
    try:
        device = resolve_device(store.config.device)
    except UserError:  # of another machine
        device = resolve_device("auto")
    return Sampler(policy.to(device), Units(store.config.samples))
