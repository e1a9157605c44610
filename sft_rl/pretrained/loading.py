"""Pretrained models of others: folders of diffusers, the hub, files of DDPM and EDM."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

from diffusers import (
    DiTTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sft_rl.config import OF_PROMPTS, PretrainedConfig
from sft_rl.errors import UserError
from sft_rl.pretrained.ddpm import read_ddpm_checkpoint
from sft_rl.pretrained.edm import edm_sections, edm_weights, is_edm
from sft_rl.pretrained.folders import (
    PARTS,
    find,
    is_on_hub,
    model_folder,
    network_folder,
    read_json,
    state_file,
    weights_files,
    weights_sha256,
)
from sft_rl.pretrained.low_rank import merge_lora
from sft_rl.pretrained.pipeline_kinds import KINDS as PIPELINES
from sft_rl.pretrained.pipelines import check_pipeline, is_pipeline, kind_of
from sft_rl.pretrained.schedulers import Sections, read_scheduler
from sft_rl.pretrained.states import read_state

KINDS = {
    "UNet2DModel": ("unet", UNet2DModel),
    "DiTTransformer2DModel": ("dit", DiTTransformer2DModel),
    "UNet2DConditionModel": ("text_unet", UNet2DConditionModel),
    "SD3Transformer2DModel": ("sd3", SD3Transformer2DModel),
    "PixArtTransformer2DModel": ("pixart", PixArtTransformer2DModel),
}
"""Networks of diffusers that are read, with `model.kind`."""
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Layers of attention by the names that diffusers had for them before, and has."""


def read_pretrained(options: PretrainedConfig, *, num_classes: int) -> Sections:
    """Read what a pretrained model says of itself and its noise, and its weights' hash.

    Args:
        options: Where it is.
        num_classes: Of a model that does not say so itself.

    Raises:
        UserError: If there is no such model, it is of a kind that is not supported, or its
            weights are not those of `pretrained.sha256`.
    """
    sections = _model(options, num_classes)
    folder = Path(str(options.path))
    if options.lora is not None and (not is_pipeline(folder) or kind_of(folder).lora is None):
        with_adapters = " or ".join(name for name, kind in PIPELINES.items() if kind.lora)
        raise UserError(
            f"pretrained.lora: goes with the folder of a {with_adapters}, {options.path} is none"
        )
    expected, digest = options.sha256, weights_sha256(options)
    if expected not in (None, digest):
        raise UserError(
            f"pretrained.sha256: the weights in {weights_files(options)[0]} have the hash "
            f"{digest}, expected {expected}"
        )
    return {**sections, "pretrained": {**options.model_dump(), "sha256": digest}}


def _model(options: PretrainedConfig, num_classes: int) -> Sections:
    file = state_file(options)
    if file is not None:
        state = read_state(file, field="pretrained.path", variant=options.variant)
        if is_edm(state):
            return edm_sections(file, state, options.preconditioning)
    if options.preconditioning is not None:
        raise UserError(
            f"pretrained.preconditioning: {options.preconditioning!r} goes with the file of an EDM "
            f"network, {options.path} is none"
        )
    if file is not None:
        return {"model": {"kind": "unet", "unet": read_ddpm_checkpoint(file, state)[0]}}
    folder = model_folder(options)
    if is_pipeline(folder):
        if is_on_hub(str(options.path)):
            raise UserError(
                f"pretrained.path: {options.path} is a pipeline of latents, which is read from a "
                "folder: fetch it first (hf download … --local-dir FOLDER)"
            )
        check_pipeline(folder)
    model = _network(options, folder, num_classes)
    scheduler = find(folder, "scheduler", "scheduler_config.json")
    if not scheduler.is_file():  # settings say what it would
        return {"model": model}
    sections = read_scheduler(str(options.path), read_json(scheduler))
    return {**sections, "model": {**model, **sections["model"]}}


def load_pretrained(network: nn.Module, options: PretrainedConfig) -> None:
    """Put the weights of a pretrained model into a network of its kind.

    Raises:
        UserError: Naming a file that is missing, damaged or of another network.
    """
    try:
        network.get_submodule("unet").load_state_dict(_weights(options))
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(
            f"pretrained.path: the weights in {weights_files(options)[0]} do not fit its network: "
            f"{reason}"
        ) from error
    if options.lora is not None:
        kind = kind_of(Path(str(options.path)))
        merge_lora(network.get_submodule("unet"), kind, options.lora)


def _weights(options: PretrainedConfig) -> dict[str, Tensor]:
    """Read the weights, by the names that diffusers has for them today."""
    file = state_file(options)
    if file is not None:
        state = read_state(file, field="pretrained.path", variant=options.variant)
        return edm_weights(state) if is_edm(state) else read_ddpm_checkpoint(file, state)[1]
    weights: dict[str, Tensor] = {}
    for file in weights_files(options):
        try:
            weights |= load_file(file)
        except SafetensorError as error:
            raise UserError(f"pretrained.path: {file} is damaged: {error}") from error
    return {_todays(name): tensor for name, tensor in weights.items()}


def _todays(name: str) -> str:
    found = re.fullmatch(r"(.*\.attentions\.\d+)\.(\w+)\.(weight|bias)", name)
    if found is None or found[2] not in OLD_ATTENTION:
        return name
    return f"{found[1]}.{OLD_ATTENTION[found[2]]}.{found[3]}"


def _network(options: PretrainedConfig, folder: Path, num_classes: int) -> dict[str, Any]:
    """Read the network's arguments, with the defaults of diffusers where they are left out."""
    file, path = network_folder(folder) / "config.json", options.path
    if not file.is_file():
        raise UserError(
            f"pretrained.path: {path} holds no network (no config.json, alone or in "
            f"{' or '.join(PARTS)})"
        )
    given = read_json(file)
    name = str(given.get("_class_name"))
    if name not in KINDS or (KINDS[name][0] in OF_PROMPTS and not is_pipeline(folder)):
        kind = f"{name} alone" if name in KINDS else name
        raise UserError(
            f"pretrained.path: {path} is a {kind}; supported are UNet2DModel and "
            "DiTTransformer2DModel of pixels, unconditional or conditional on classes, and "
            f"text-to-image and class-to-image pipelines ({', '.join(PIPELINES)})"
        )
    kind, network = KINDS[name]
    parameters = inspect.signature(network.__init__).parameters
    defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    own = {key: given.get(key, default) for key, default in defaults.items()}
    if own.get("class_embed_type") and not own["num_class_embeds"]:  # it need not say so itself
        own["num_class_embeds"] = num_classes or None
    return {"kind": kind, "unet": json.loads(json.dumps(own))}
