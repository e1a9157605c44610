"""Tensors of which each learner of a team keeps a part (torch's ``DTensor``), and whole ones.

Nothing of torch's for them is imported where there are none: it takes a second.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_split(tensor: Tensor) -> bool:
    """Whether each learner keeps a part."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts, for which all learners of the team ask together."""
    split: Any = tensor
    return split.full_tensor() if is_split(tensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """The part that is here, whose memory is the tensor's own; all of one that is whole."""
    split: Any = tensor
    return split.to_local() if is_split(tensor) else tensor


def split_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, which all learners have, split as another of its shape is, if that is."""
    if not is_split(other):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    placed: Any = other
    return distribute_tensor(
        tensor.to(other.device), placed.device_mesh, placed.placements, src_data_rank=None
    )
