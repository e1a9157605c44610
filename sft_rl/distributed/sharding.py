"""Networks split over the learners of a team, by torch's FSDP2 (Zhao et al., 2023)."""

from __future__ import annotations

from collections.abc import Iterator

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from sft_rl.networks.lora import Adapted


def split(network: nn.Module) -> None:
    """Leave each learner its part of a network's parameters, of their gradients and moments.

    A pass gathers the parameters unit by unit, and lets go of them; gradients are summed over the
    learners, and each keeps those of its part. Of a network with an adapter the weights at rest are
    split, once for all its copies; the adapter, which is small, is not.
    """
    device = next(network.parameters()).device.type
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for unit in _units(network):
        if isinstance(unit, FSDPModule):  # copies share it
            continue
        one: FSDPModule = fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        one.set_gradient_divide_factor(1.0)  # each learner's loss is that of the whole batch
        one.set_force_sum_reduction_for_comms(True)  # gloo has no other
        one.unshard()  # its buffers: those of a first pass in inference mode would be of no other
        one.reshard()


def gather(network: nn.Module) -> None:
    """Give every learner the whole parameters of a split network, for good."""
    for unit in network.modules():
        if isinstance(unit, FSDPModule):
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()


def _units(network: nn.Module) -> Iterator[nn.Module]:
    """What is gathered at a time: blocks in lists, inner ones first, then what is left."""
    if isinstance(network, Adapted):
        yield from network.resting()
        return
    for module in reversed(list(network.modules())):
        if isinstance(module, nn.ModuleList):
            yield from (child for child in module if child is not None and _is_block(child))
    yield network


def _is_block(module: nn.Module) -> bool:
    """Whether a module is called itself, is more than one layer, and has parameters."""
    is_container = isinstance(module, nn.ModuleList | nn.ModuleDict)
    parts = (module.children(), module.parameters())
    return not is_container and all(any(True for _ in part) for part in parts)
