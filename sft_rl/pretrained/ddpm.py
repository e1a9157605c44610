"""The original PyTorch DDPM checkpoints (``down.0.block.0.norm1.weight`` …) as a UNet2DModel."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from sft_rl.errors import UserError
from sft_rl.pretrained.states import State

BLOCK = {"temb_proj": "time_emb_proj", "nin_shortcut": "conv_shortcut"}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
NUM_GROUPS = 32


def read_ddpm_checkpoint(file: Path, state: State) -> tuple[dict[str, Any], State]:
    """Read the architecture off a checkpoint's state dict, and name its weights as diffusers does.

    Args:
        file: Where it came from.
        state: The state dict.

    Returns:
        Arguments of UNet2DModel but for the images' size, and its weights.

    Raises:
        UserError: If it is no such checkpoint.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if "conv_in.weight" not in state or "down.0.block.0.norm1.weight" not in state:
        raise UserError(
            f"pretrained.path: {file} is no original DDPM checkpoint (it has no "
            "down.0.block.0.norm1.weight), nor a network of EDM (no map_layer0.weight)"
        )
    options = ddpm_options(state)
    num_levels = len(options["block_out_channels"])
    return options, {_renamed(n, num_levels): _reshaped(n, t) for n, t in state.items()}


def ddpm_options(state: State) -> dict[str, Any]:
    """Read the architecture off the names and shapes of a state dict."""
    num_levels = 1 + max(int(n.split(".")[1]) for n in state if n.startswith("down."))
    widths = [state[f"down.{i}.block.0.conv1.weight"].shape[0] for i in range(num_levels)]
    attends = [f"down.{i}.attn.0.q.weight" in state for i in range(num_levels)]
    blocks = {n.split(".")[3] for n in state if n.startswith("down.0.block.")}
    return {
        "in_channels": state["conv_in.weight"].shape[1],
        "out_channels": state["conv_out.weight"].shape[0],
        "block_out_channels": widths,
        "layers_per_block": len(blocks),
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "norm_num_groups": NUM_GROUPS,
        "add_attention": "mid.attn_1.q.weight" in state,
    }


def _renamed(name: str, num_levels: int) -> str:
    """Translate one parameter's name."""
    head, _, rest = name.partition(".")
    if head == "temb":
        return rest.replace("dense.0", "time_embedding.linear_1").replace(
            "dense.1", "time_embedding.linear_2"
        )
    if head == "norm_out":
        return f"conv_norm_out.{rest}"
    if head == "mid":
        part, _, leaf = rest.partition(".")
        if part == "attn_1":
            return f"mid_block.attentions.0.{_leaf(leaf, ATTENTION)}"
        return f"mid_block.resnets.{int(part[-1]) - 1}.{_leaf(leaf, BLOCK)}"
    if head not in ("down", "up"):
        return name
    found = re.fullmatch(r"(\d+)\.(block|attn|downsample|upsample)\.(.*)", rest)
    if found is None:
        return name  # is refused when the weights are loaded
    level, part, leaf = int(found[1]), found[2], found[3]
    # Original levels count from the full size, those of the way up in diffusers from the smallest.
    block = f"{head}_blocks.{level if head == 'down' else num_levels - 1 - level}"
    if part in ("downsample", "upsample"):
        return f"{block}.{part}rs.0.{leaf}"
    index, _, leaf = leaf.partition(".")
    if part == "attn":
        return f"{block}.attentions.{index}.{_leaf(leaf, ATTENTION)}"
    return f"{block}.resnets.{index}.{_leaf(leaf, BLOCK)}"


def _leaf(leaf: str, names: dict[str, str]) -> str:
    layer, _, kind = leaf.partition(".")
    return f"{names.get(layer, layer)}.{kind}"


def _reshaped(name: str, tensor: Tensor) -> Tensor:
    """Attention's 1x1 convolutions are linear layers in diffusers."""
    is_attention = re.search(r"attn(_1|\.\d+)\.(q|k|v|proj_out)\.weight$", name)
    return tensor[:, :, 0, 0] if is_attention else tensor
