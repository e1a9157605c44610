"""A low-rank adapter of others, as trainers of pipelines write it, in a model's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import loaders
from diffusers.utils import convert_unet_state_dict_to_peft
from torch import Tensor, nn

from sft_rl.errors import UserError, first_line
from sft_rl.pretrained.folders import lora_file
from sft_rl.pretrained.pipeline_kinds import PipelineKind


def merge_lora(network: Any, kind: PipelineKind, given: str) -> None:
    """Add an adapter to the weights of a pipeline's denoiser, as diffusers reads and fuses it.

    Files of diffusers, by its names of today or its older ones, and of kohya, by those or by the
    original's names of blocks, are read.

    Args:
        network: The denoiser.
        kind: Of its pipeline, which has adapters.
        given: The file or folder.

    Raises:
        UserError: If it cannot be read, or is not for this network alone.
    """
    file = lora_file(given)
    blocks = {"unet_config": network.config} if kind.denoiser == "unet" else {}
    try:
        state, *alphas, metadata = getattr(loaders, str(kind.lora)).lora_state_dict(
            file.parent,
            weight_name=file.name,
            use_safetensors=True,
            local_files_only=True,
            return_lora_metadata=True,
            **blocks,
        )
        _check(state, network, kind.denoiser, file)
        own = {"network_alphas": alphas[0]} if alphas else {}
        network.load_lora_adapter(state, prefix=kind.denoiser, metadata=metadata, **own)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise UserError(f"pretrained.lora: cannot read {file}: {first_line(error)}") from error
    network.fuse_lora()
    network.unload_lora()


def _check(state: dict[str, Tensor], network: nn.Module, part: str, file: Path) -> None:
    """Refuse weights of layers that there are not: diffusers would leave them out."""
    layers = dict(network.named_modules())
    strange = [name for name in state if not name.startswith(f"{part}.")]
    names = {name.removeprefix(f"{part}."): tensor for name, tensor in state.items()}
    if not any(".lora_A." in name for name in names):
        names = convert_unet_state_dict_to_peft(names)
    strange += [name for name in names if name.rpartition(".lora_")[0] not in layers]
    if strange:
        raise UserError(
            f"pretrained.lora: {file} has {len(strange)} tensors of layers that the {part} has "
            f"not, the first is {strange[0]}; adapters of the {part} of the model alone are read"
        )
