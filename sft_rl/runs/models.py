"""What a full-step model that is there already says of itself, filled into the settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sft_rl.config import Config, PretrainedConfig
from sft_rl.config.files import lookup
from sft_rl.errors import UserError
from sft_rl.networks.own import OwnNetwork, made_module
from sft_rl.pretrained.states import file_sha256
from sft_rl.storage.checkpoint import state_sha256

Sections = dict[str, dict[str, Any]]
"""Settings by section."""


def with_pretrained(
    config: Config, sections: Sections | None, *, fetch: bool, warn: Callable[[str], None]
) -> Config:
    """Fill in what a pretrained model says of itself."""
    own, where = config.pretrained, (sections or {}).get("pretrained")
    if where is None or any(getattr(own, n) != where[n] for n in ("path", "variant", "lora")):
        from sft_rl.pretrained.folders import is_on_hub
        from sft_rl.pretrained.loading import read_pretrained  # here: diffusers is slow to import

        if is_on_hub(str(own.path)):
            if not fetch:
                return config
            warn(f"pretrained.path: {own.path} is not here; asking the Hugging Face hub for it")
        sections = read_pretrained(own, num_classes=config.model.num_classes)
    assert sections is not None
    _check_no_contradiction(config, sections)
    tree = config.model_dump()
    for name, values in sections.items():
        tree[name] = {**tree[name], **values}
    return Config.model_validate(tree)


def with_factory(config: Config) -> Config:
    """Fill in the hash of the trained weights that a network of one's own brings, if it does."""
    model, pretrained = config.model, config.pretrained
    if pretrained.path is not None:
        raise UserError(
            f"pretrained.path: {pretrained.path} and model.factory: {model.factory} are two "
            "models; leave one out"
        )
    if model.weights is None:
        return config
    if model.weights == "factory":
        sha256 = state_sha256(OwnNetwork(made_module("model.factory", str(model.factory)), ()))
    elif Path(model.weights).is_file():
        sha256 = file_sha256(Path(model.weights))
    else:
        raise UserError(f"model.weights: no file at {model.weights}; or is it 'factory'?")
    if pretrained.sha256 not in (None, sha256):
        raise UserError(
            f"pretrained.sha256: model.weights={model.weights} have the hash {sha256}, expected "
            f"{pretrained.sha256}"
        )
    return config.model_copy(update={"pretrained": PretrainedConfig(sha256=sha256)})


def _check_no_contradiction(config: Config, sections: Sections) -> None:
    """Refuse settings that a user gave beside a pretrained model which says otherwise."""
    for key in config.own_keys:
        section, name, *inner = [*key.split("."), ""]
        if section not in ("model", "noise") or name not in sections.get(section, {}):
            continue
        found = sections[section][name]
        if isinstance(found, dict) and inner[0]:
            found = found.get(inner[0])
        elif isinstance(found, dict):
            continue  # all of them at once: what differs is refused with the images' size
        given = lookup(config, key)
        if given != found:
            raise UserError(
                f"{key}: {given!r} contradicts pretrained.path: {config.pretrained.path} has "
                f"{found!r}; leave the setting out"
            )
