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

from sft_rl.config import Config
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


def resolve_pretrained(config: Config) -> Config:
    """Fill in what `pretrained.path` says of the model and its noise, and its weights' hash.

    Raises:
        UserError: If there is no such model, it is of a kind that is not supported, or its
            weights are not those of `pretrained.sha256`.
    """
    if config.pretrained.path is None:
        return config
    return filled_in(config, read_pretrained(config))


def read_pretrained(config: Config) -> Sections:
    """Read what :func:`resolve_pretrained` fills in; raises as it does."""
    sections = _model(config)
    expected, digest = config.pretrained.sha256, _weights_sha256(config)
    if expected not in (None, digest):
        raise UserError(
            f"pretrained.sha256: the weights in {weights_file(config)} have the hash {digest}, "
            f"expected {expected}"
        )
    return {**sections, "pretrained": {**config.pretrained.model_dump(), "sha256": digest}}


def _model(config: Config) -> Sections:
    file = _ddpm_file(config)
    if file is not None:
        unet, _ = read_ddpm_checkpoint(file, config.pretrained.variant)
        return {"model": {"kind": "unet", "unet": unet}}
    folder = _folder(config)
    unet = _unet_options(config, folder)
    scheduler = _read_json(_find(folder, "scheduler", "scheduler_config.json"))
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise UserError(
            f"pretrained.path: {config.pretrained.path} predicts {prediction!r}; supported are "
            f"{' and '.join(PREDICTIONS)}"
        )
    model = {"kind": "unet", "unet": unet, "prediction": prediction}
    return {"model": model, "noise": _noise(config, scheduler)}


def load_pretrained(network: nn.Module, config: Config) -> None:
    """Put the weights of a resolved configuration's pretrained model into its network.

    Raises:
        UserError: Naming a file that is missing, damaged or of another network.
    """
    unet = next(m for m in network.modules() if isinstance(m, UNet2DModel))
    try:
        unet.load_state_dict(_weights(config))
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(
            f"pretrained.path: the weights in {weights_file(config)} do not fit its U-Net: {reason}"
        ) from error


def _weights(config: Config) -> dict[str, Tensor]:
    """Read the weights, by diffusers' names."""
    file = weights_file(config)
    if file == _ddpm_file(config):
        return read_ddpm_checkpoint(file, config.pretrained.variant)[1]
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"pretrained.path: {file} is damaged: {error}") from error


def weights_file(config: Config) -> Path:
    """Return the file with the weights of a pretrained model.

    Raises:
        UserError: If it is not there, or only as a pickle.
    """
    file = _ddpm_file(config)
    if file is not None:
        return file
    variant = config.pretrained.variant
    name = f"{WEIGHTS}.{variant}.safetensors" if variant else f"{WEIGHTS}.safetensors"
    folder = _folder(config, [name, f"unet/{name}"])
    found = _unet_folder(folder) / name
    if not found.is_file():
        others = sorted(p.name for p in _unet_folder(folder).glob("*") if p.suffix != ".json")
        raise UserError(
            f"pretrained.path: no {name} in {_unet_folder(folder)}; weights are read from "
            f"safetensors only; there are: {', '.join(others) or 'none'}"
        )
    return found


def _weights_sha256(config: Config) -> str:
    with weights_file(config).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def filled_in(config: Config, sections: Sections) -> Config:
    """Put what was read of a pretrained model into a configuration."""
    tree = config.model_dump()
    for name, values in sections.items():
        tree[name] = {**tree[name], **values}
    return Config.model_validate(tree)


def _ddpm_file(config: Config) -> Path | None:
    path = Path(config.pretrained.path or "")
    if not path.is_file():
        return None
    if path.suffix not in DDPM_FILES:
        raise UserError(
            f"pretrained.path: {path} ends in {path.suffix!r}, expected a folder of diffusers or "
            f"an original DDPM in {', '.join(DDPM_FILES)}"
        )
    return path


def _folder(config: Config, files: list[str] | None = None) -> Path:
    """Return a local folder, or fetch the wanted files of a model on the hub."""
    path = config.pretrained.path or ""
    if Path(path).is_dir():
        return Path(path)
    if path.count("/") != 1 or path.startswith((".", "/")):
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


def _unet_options(config: Config, folder: Path) -> dict[str, Any]:
    """Read the U-Net's arguments, with the defaults of diffusers where they are left out."""
    file = _unet_folder(folder) / "config.json"
    path = config.pretrained.path
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
    options = {name: given.get(name, default) for name, default in defaults.items()}
    if options["class_embed_type"] and not options["num_class_embeds"]:  # it need not say so itself
        options["num_class_embeds"] = config.model.unet.get("num_class_embeds")
    return json.loads(json.dumps(options))  # type: ignore[no-any-return]


def _noise(config: Config, scheduler: dict[str, Any]) -> dict[str, Any]:
    kind = scheduler.get("beta_schedule", "linear")
    if kind not in SCHEDULES or scheduler.get("trained_betas") is not None:
        raise UserError(
            f"pretrained.path: the noise of {config.pretrained.path} is {kind!r}; supported are "
            f"{', '.join(SCHEDULES)} without trained_betas"
        )
    return {
        "schedule": SCHEDULES[kind],
        "num_train_timesteps": scheduler.get("num_train_timesteps", 1000),
        "beta_start": scheduler.get("beta_start", 1e-4),
        "beta_end": scheduler.get("beta_end", 0.02),
    }
