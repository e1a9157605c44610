"""Where the files of a pretrained model are: a folder of diffusers, the hub, or one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sft_rl.config import PretrainedConfig
from sft_rl.errors import UserError
from sft_rl.pretrained.states import file_sha256

WEIGHTS = "diffusion_pytorch_model"
STATE_FILES = (".safetensors", ".ckpt", ".pt", ".pth")
LORA = "pytorch_lora_weights.safetensors"
"""What diffusers calls the file of a low-rank adapter."""
PARTS = ("unet", "transformer")
"""Parts of a pipeline that are a denoising network."""
HUB_FILES = ["*.json", "scheduler/*.json", *(f"{part}/*.json" for part in PARTS)]


def is_on_hub(path: str) -> bool:
    """Whether a path names a model on the Hugging Face hub, and nothing that is here."""
    return not Path(path).exists() and path.count("/") == 1 and not path.startswith((".", "/"))


def state_file(options: PretrainedConfig) -> Path | None:
    """Return the file of a DDPM or an EDM network; None if the path is a folder or a name.

    Raises:
        UserError: If it is a file of another kind.
    """
    path = Path(options.path or "")
    if not path.is_file():
        return None
    if path.suffix == ".pkl":
        raise UserError(
            f"pretrained.path: {path} is a pickle, which runs code when it is opened; if you trust "
            f"it, `python examples/edm_weights.py {path} {path.with_suffix('.safetensors')}` "
            "converts one of EDM"
        )
    if path.suffix not in STATE_FILES:
        raise UserError(
            f"pretrained.path: {path} ends in {path.suffix!r}, expected a folder of diffusers, or "
            f"an original DDPM or a network of EDM in {', '.join(STATE_FILES)}"
        )
    return path


def model_folder(options: PretrainedConfig, files: list[str] | None = None) -> Path:
    """Return a local folder, or fetch the wanted files of a model on the hub.

    Args:
        options: Where it is.
        files: Patterns of the wanted files; by default all settings.

    Raises:
        UserError: If there is no such model.
    """
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


def network_folder(folder: Path) -> Path:
    """Return where a model's network is: a part of a pipeline, or alone."""
    return next((folder / part for part in PARTS if (folder / part).is_dir()), folder)


def weights_files(options: PretrainedConfig) -> list[Path]:
    """Return the files with the weights of a pretrained model: one, or its parts in order.

    Raises:
        UserError: If one is not there, or only as a pickle.
    """
    file = state_file(options)
    if file is not None:
        return [file]
    dot = f".{options.variant}" if options.variant else ""
    whole, index = f"{WEIGHTS}{dot}.safetensors", f"{WEIGHTS}.safetensors.index{dot}.json"
    names = [whole, index, f"{WEIGHTS}{dot}-*-of-*.safetensors"]
    in_parts = [f"{part}/{name}" for part in PARTS for name in names]
    folder = network_folder(model_folder(options, [*names, *in_parts]))
    if (folder / whole).is_file():
        return [folder / whole]
    if not (folder / index).is_file():
        others = sorted(p.name for p in folder.glob("*") if p.suffix != ".json")
        raise UserError(
            f"pretrained.path: no {whole} in {folder}; weights are read from safetensors only; "
            f"there are: {', '.join(others) or 'none'}"
        )
    parts = sorted(set(read_json(folder / index).get("weight_map", {}).values()))
    missing = [part for part in parts if not (folder / part).is_file()]
    if missing or not parts:
        raise UserError(f"pretrained.path: {folder / index} names {missing or 'no files'}")
    return [folder / part for part in parts]


def weights_sha256(options: PretrainedConfig) -> str:
    """Return the hash of the weights' file, or of its parts and an adapter one after the other."""
    adapter = [] if options.lora is None else [lora_file(options.lora)]
    return file_sha256(*weights_files(options), *adapter)


def lora_file(given: str) -> Path:
    """Return the file of a low-rank adapter of `pretrained.lora`.

    Raises:
        UserError: If there is none.
    """
    path = Path(given)
    file = path / LORA if path.is_dir() else path
    if not file.is_file() or file.suffix != ".safetensors":
        raise UserError(
            f"pretrained.lora: expected a .safetensors file, or a folder with {LORA}, got {given}"
        )
    return file


def find(folder: Path, part: str, name: str) -> Path:
    """Return a file of a part of a pipeline, or of a folder without parts."""
    inner = folder / part / name
    return inner if inner.is_file() else folder / name


def read_json(file: Path) -> dict[str, Any]:
    """Read a file of settings.

    Raises:
        UserError: If it is not there or is none.
    """
    if not file.is_file():
        raise UserError(f"pretrained.path: no {file.name} in {file.parent}")
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"pretrained.path: {file} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"pretrained.path: {file} holds no settings")
    return content
