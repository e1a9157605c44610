"""What travels between sampling and learning; every shape is written here.

T is the number of denoising steps, B the number of trajectories, ``*shape`` the shape of one
sample: (2,) for points of the plane, (3, 32, 32) for images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

ALONG_B = {"labels": 0, "branch_step": 0}
"""The dimension that counts trajectories, where it is not 1."""

Metrics = dict[str, float]
"""Numbers worth watching, by name; ``docs/metrics.md`` explains each."""
Progress = Callable[[int, int, Metrics], None]
"""Told how many of how many are done, and the newest numbers."""


def silent(done: int, total: int, metrics: Metrics) -> None:
    """A progress that nobody watches."""


def for_all(labels: Tensor, lead: Sequence[int]) -> Tensor:
    """Expand labels to the leading dimensions: classes to (*lead), vectors to (*lead, D)."""
    is_vector = labels.is_floating_point()
    return labels.expand(*lead, labels.shape[-1]) if is_vector else labels.expand(*lead)


def given(labels: Tensor | None) -> tuple[Tensor, ...]:
    """Labels as a network's, a critic's or a reward's last argument: none if there are none.

    So whatever is not conditional on a class needs not know of labels.
    """
    return () if labels is None else (labels,)


@dataclass(frozen=True)
class Trajectories:
    """Complete denoising episodes, all of the same length.

    Attributes:
        latents: Every latent, from pure noise ``latents[0]`` to the final sample ``latents[T]``,
            shape (T+1, B, *shape); maybe narrower than float32 until :meth:`to` widens them.
        log_probs: Log-density of each action under the policy that drew it, shape (T, B);
            zero at steps without noise, which have no density.
        rewards: Raw scores of the final samples by the K terms of the objective that score each
            sample once, shape (K, B); the critic alone has none.
        policy_version: Number of the weights that drew them.
        labels: Class that each sample is to be of, int64, shape (B,), or vector that it is
            conditional on, float32, shape (B, D); None if the model is unconditional.
        group_size: K trajectories in a row share their start noise and label; 1 for no groups.
        branch_step: Step at which those of a group part, int64, shape (B,): they share the latents
            up to it, and their actions from it on are their own; None without groups.
        expected: The final sample that the policy expected at each state, shape (T, B, *shape),
            in the latents' type; None unless an algorithm looks ahead.
        taken: The policy's steps that were taken where some were noisier ones, int64, (T, B).
    """

    latents: Tensor
    log_probs: Tensor
    rewards: Tensor
    policy_version: int
    labels: Tensor | None = None
    group_size: int = 1
    branch_step: Tensor | None = None
    expected: Tensor | None = None
    taken: Tensor | None = None

    @property
    def step_index(self) -> Tensor:
        """The policy's steps that were taken, int64, shape (T, 1), or (T, B) if they differ."""
        if self.taken is not None:
            return self.taken
        return torch.arange(self.num_steps, device=self.latents.device)[:, None]

    @property
    def num_steps(self) -> int:
        """Number of denoising steps T."""
        return len(self.latents) - 1

    @property
    def final(self) -> Tensor:
        """The final samples, shape (B, *shape)."""
        return self.latents[-1]

    def __len__(self) -> int:
        return self.latents.shape[1]

    @staticmethod
    def concatenate(parts: Sequence[Trajectories]) -> Trajectories:
        """Join batches of one policy version along B."""
        versions = {part.policy_version for part in parts}
        assert len(versions) == 1, f"trajectories of different policies: versions {versions}"
        if len(parts) == 1:
            return parts[0]
        columns = [part._tensors() for part in parts]
        joined = {
            name: torch.cat([column[name] for column in columns], dim=ALONG_B.get(name, 1))
            for name in columns[0]
        }
        return parts[0]._with(joined)

    def to(self, device: torch.device) -> Trajectories:
        """Move the tensors to a device; floats become float32 there, after they travelled."""
        moved = {name: _moved(tensor, device) for name, tensor in self._tensors().items()}
        return self._with({k: v.float() if v.is_floating_point() else v for k, v in moved.items()})

    def to_numpy(self) -> dict[str, np.ndarray | int]:
        """Return plain arrays, which Ray's object store passes on without a copy.

        numpy has no bfloat16: such numbers go as the same bits in uint16.
        """
        arrays: dict[str, np.ndarray | int] = {
            "policy_version": self.policy_version,
            "group_size": self.group_size,
        }
        for name, tensor in self._tensors().items():
            bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
            arrays[name] = bits.cpu().numpy()
        return arrays

    @staticmethod
    def from_numpy(arrays: dict[str, np.ndarray | int]) -> Trajectories:
        """Undo :meth:`to_numpy`."""
        values: dict[str, Any] = {}
        for name, array in arrays.items():
            values[name] = array
            if isinstance(array, np.ndarray):
                bits = torch.tensor(array)
                values[name] = bits.view(torch.bfloat16) if bits.dtype == torch.uint16 else bits
        return Trajectories(**values)

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def _with(self, tensors: dict[str, Any]) -> Trajectories:
        return replace(self, **tensors)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to a device; onto a GPU from pinned memory, which the CPU need not wait for."""
    if tensor.is_cpu and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True)
class Transitions:
    """Single steps of the MDP with what a policy gradient needs to know of them.

    The leading dimensions ``...`` are (T, B) for a whole grid of steps, (N,) for a drawn subset.

    Attributes:
        latents: State s_k, shape (..., *shape).
        actions: Action a_k, the next latent, shape (..., *shape).
        step_index: k in 0..T-1, int64, shape (...) or broadcastable to it, as (T, 1).
        old_log_probs: log pi_old(a_k | s_k), shape (...).
        advantages: Advantage of a_k, shape (...).
        labels: Class that the sample is to be of, int64, shape (B,) or (N,), or its vector, with
            D numbers; None if the model is unconditional.
    """

    latents: Tensor
    actions: Tensor
    step_index: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    labels: Tensor | None = None

    @property
    def lead_shape(self) -> torch.Size:
        """The leading dimensions, (T, B) or (N,)."""
        return self.advantages.shape

    def flatten(self) -> Transitions:
        """Turn the (T, B) grid into N = T * B single transitions, step by step."""
        lead = self.lead_shape
        event = self.latents.shape[len(lead) :]
        return Transitions(
            latents=self.latents.reshape(-1, *event),
            actions=self.actions.reshape(-1, *event),
            step_index=self.step_index.expand(lead).reshape(-1),
            old_log_probs=self.old_log_probs.reshape(-1),
            advantages=self.advantages.reshape(-1),
            labels=None
            if self.labels is None
            else for_all(self.labels, lead).flatten(0, -1 + len(lead)),
        )

    def part(self, trajectories: slice, *, num_steps: int | None = None) -> Transitions:
        """Take the first steps, by default all, of some trajectories of the (T, B) grid."""
        steps = slice(num_steps)
        rows = trajectories if self.step_index.shape[1] > 1 else slice(None)  # one for all
        return Transitions(
            latents=self.latents[steps, trajectories],
            actions=self.actions[steps, trajectories],
            step_index=self.step_index[steps, rows],
            old_log_probs=self.old_log_probs[steps, trajectories],
            advantages=self.advantages[steps, trajectories],
            labels=None if self.labels is None else self.labels[trajectories],
        )

    def __len__(self) -> int:
        assert len(self.lead_shape) == 1, "count flat transitions; call flatten() first"
        return len(self.advantages)

    def __getitem__(self, index: Tensor | slice) -> Transitions:
        """Take a subset of flat transitions."""
        assert len(self.lead_shape) == 1, "index flat transitions; call flatten() first"
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return Transitions(**{k: v[index] for k, v in tensors.items() if v is not None})


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise and the numbers worth watching about it, floats or tensors of one."""

    value: Tensor
    metrics: Mapping[str, Tensor | float]
