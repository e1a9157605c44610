"""Pretrained models of others: folders of diffusers, the hub, original DDPM files."""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

from diffusers import UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sft_rl.config import PretrainedConfig
from sft_rl.errors import UserError
from sft_rl.pretrained.ddpm import read_ddpm_checkpoint

Sections = dict[str, dict[str, Any]]
"""Settings by section."""
WEIGHTS = "diffusion_pytorch_model"
SCHEDULES = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}
PREDICTIONS = ("epsilon", "v_prediction")
DDPM_FILES = (".safetensors", ".ckpt", ".pt", ".pth")
HUB_FILES = ["*.json", "unet/*.json", "scheduler/*.json"]


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
    expected, digest = options.sha256, _weights_sha256(options)
    if expected not in (None, digest):
        raise UserError(
            f"pretrained.sha256: the weights in {weights_file(options)} have the hash {digest}, "
            f"expected {expected}"
        )
    return {**sections, "pretrained": {**options.model_dump(), "sha256": digest}}


def is_on_hub(path: str) -> bool:
    """Whether a path names a model on the Hugging Face hub, and nothing that is here."""
    return not Path(path).exists() and path.count("/") == 1 and not path.startswith((".", "/"))


def _model(options: PretrainedConfig, num_classes: int) -> Sections:
    file = _ddpm_file(options)
    if file is not None:
        unet, _ = read_ddpm_checkpoint(file, options.variant)
        return {"model": {"kind": "unet", "unet": unet}}
    folder = _folder(options)
    unet = _unet_options(options, folder, num_classes)
    scheduler = _read_json(_find(folder, "scheduler", "scheduler_config.json"))
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise UserError(
            f"pretrained.path: {options.path} predicts {prediction!r}; supported are "
            f"{' and '.join(PREDICTIONS)}"
        )
    model = {"kind": "unet", "unet": unet, "prediction": prediction}
    return {"model": model, "noise": _noise(options, scheduler)}


def load_pretrained(network: nn.Module, options: PretrainedConfig) -> None:
    """Put the weights of a pretrained model into a network of its kind.

    Raises:
        UserError: Naming a file that is missing, damaged or of another network.
    """
    unet = next(m for m in network.modules() if isinstance(m, UNet2DModel))
    try:
        unet.load_state_dict(_weights(options))
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(
            f"pretrained.path: the weights in {weights_file(options)} do not fit its U-Net: "
            f"{reason}"
        ) from error


def _weights(options: PretrainedConfig) -> dict[str, Tensor]:
    """Read the weights, by diffusers' names."""
    file = weights_file(options)
    if file == _ddpm_file(options):
        return read_ddpm_checkpoint(file, options.variant)[1]
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"pretrained.path: {file} is damaged: {error}") from error


def weights_file(options: PretrainedConfig) -> Path:
    """Return the file with the weights of a pretrained model.

    Raises:
        UserError: If it is not there, or only as a pickle.
    """
    file = _ddpm_file(options)
    if file is not None:
        return file
    variant = options.variant
    name = f"{WEIGHTS}.{variant}.safetensors" if variant else f"{WEIGHTS}.safetensors"
    folder = _folder(options, [name, f"unet/{name}"])
    found = _unet_folder(folder) / name
    if not found.is_file():
        others = sorted(p.name for p in _unet_folder(folder).glob("*") if p.suffix != ".json")
        raise UserError(
            f"pretrained.path: no {name} in {_unet_folder(folder)}; weights are read from "
            f"safetensors only; there are: {', '.join(others) or 'none'}"
        )
    return found


def _weights_sha256(options: PretrainedConfig) -> str:
    with weights_file(options).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _ddpm_file(options: PretrainedConfig) -> Path | None:
    path = Path(options.path or "")
    if not path.is_file():
        return None
    if path.suffix not in DDPM_FILES:
        raise UserError(
            f"pretrained.path: {path} ends in {path.suffix!r}, expected a folder of diffusers or "
            f"an original DDPM in {', '.join(DDPM_FILES)}"
        )
    return path


def _folder(options: PretrainedConfig, files: list[str] | None = None) -> Path:
    """Return a local folder, or fetch the wanted files of a model on the hub."""
    path = options.path or ""
    if Path(path).is_dir():
        return Path(path)
    if not is_on_hub(path):
        raise UserError(f"pretrained.path: no folder or file at {path}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=files or HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"pretrained.path: no folder at {path}, and the hub does not give a model of that name "
            f"({type(error).__name__}); is there a network, and is the name right?"
        ) from error


def _unet_folder(folder: Path) -> Path:
    return folder / "unet" if (folder / "unet").is_dir() else folder


def _find(folder: Path, part: str, name: str) -> Path:
    inner = folder / part / name
    return inner if inner.is_file() else folder / name


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"pretrained.path: no {file.name} in {file.parent}")
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"pretrained.path: {file} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"pretrained.path: {file} holds no settings")
    return content


def _unet_options(options: PretrainedConfig, folder: Path, num_classes: int) -> dict[str, Any]:
    """Read the U-Net's arguments, with the defaults of diffusers where they are left out."""
    file = _unet_folder(folder) / "config.json"
    path = options.path
    if not file.is_file():
        raise UserError(
            f"pretrained.path: {path} holds no U-Net (no unet/config.json and no config.json)"
        )
    given = _read_json(file)
    kind = given.get("_class_name")
    if kind != UNet2DModel.__name__:
        raise UserError(
            f"pretrained.path: {path} is a {kind}; supported is UNet2DModel, unconditional or "
            "conditional on classes, not text-to-image pipelines"
        )
    parameters = inspect.signature(UNet2DModel.__init__).parameters
    defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    unet = {name: given.get(name, default) for name, default in defaults.items()}
    if unet["class_embed_type"] and not unet["num_class_embeds"]:  # it need not say so itself
        unet["num_class_embeds"] = num_classes or None
    return json.loads(json.dumps(unet))  # type: ignore[no-any-return]


def _noise(options: PretrainedConfig, scheduler: dict[str, Any]) -> dict[str, Any]:
    kind = scheduler.get("beta_schedule", "linear")
    if kind not in SCHEDULES or scheduler.get("trained_betas") is not None:
        raise UserError(
            f"pretrained.path: the noise of {options.path} is {kind!r}; supported are "
            f"{', '.join(SCHEDULES)} without trained_betas"
        )
    return {
        "schedule": SCHEDULES[kind],
        "num_train_timesteps": scheduler.get("num_train_timesteps", 1000),
        "beta_start": scheduler.get("beta_start", 1e-4),
        "beta_end": scheduler.get("beta_end", 0.02),
    }
