"""A low-rank adapter of others, as trainers of Stable Diffusion write it, in a model's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import convert_unet_state_dict_to_peft
from torch import Tensor, nn

from sft_rl.errors import UserError, first_line
from sft_rl.pretrained.folders import lora_file


def merge_lora(unet: Any, given: str) -> None:
    """Add an adapter to the weights of a UNet2DConditionModel, as diffusers reads and fuses it.

    Files of diffusers, by its names of today or its older ones, and of kohya are read.

    Raises:
        UserError: If it cannot be read, or is not for this network alone.
    """
    file = lora_file(given)
    try:
        state, alphas, metadata = StableDiffusionLoraLoaderMixin.lora_state_dict(
            file.parent,
            weight_name=file.name,
            use_safetensors=True,
            local_files_only=True,
            return_lora_metadata=True,
        )
        _check(state, unet, file)
        unet.load_lora_adapter(state, prefix="unet", network_alphas=alphas, metadata=metadata)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise UserError(f"pretrained.lora: cannot read {file}: {first_line(error)}") from error
    unet.fuse_lora()
    unet.unload_lora()


def _check(state: dict[str, Tensor], unet: nn.Module, file: Path) -> None:
    """Refuse weights of layers that there are not: diffusers would leave them out."""
    layers = dict(unet.named_modules())
    strange = [name for name in state if not name.startswith("unet.")]
    names = {name.removeprefix("unet."): tensor for name, tensor in state.items()}
    if not any(".lora_A." in name for name in names):
        names = convert_unet_state_dict_to_peft(names)
    strange += [name for name in names if name.rpartition(".lora_")[0] not in layers]
    if strange:
        raise UserError(
            f"pretrained.lora: {file} has {len(strange)} tensors of layers that the U-Net has not, "
            f"the first is {strange[0]}; adapters of the U-Net of the model alone are read"
        )
