"""What a full-step model that is there already says of itself, filled into the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sft_rl.config import ModelConfig, PretrainedConfig
from sft_rl.errors import UserError
from sft_rl.networks.own import OwnNetwork, made_module
from sft_rl.pretrained.states import file_sha256
from sft_rl.storage.checkpoint import state_sha256

Sections = dict[str, dict[str, Any]]
"""Settings by section."""
OF_MODEL = ("model.", "noise.")
"""How keys begin whose values a pretrained model may contradict."""


def of_pretrained(
    own: PretrainedConfig,
    sections: Sections | None,
    *,
    num_classes: int,
    given: Mapping[str, Any],
    fetch: bool,
    warn: Callable[[str], None],
) -> Sections:
    """Return what a pretrained model says of itself.

    Args:
        own: Which one.
        sections: What was read of one before.
        num_classes: Classes that the settings ask for.
        given: What the user set of ``model`` and ``noise``, by key.
        fetch: Fetch it from the hub, if it is there; else nothing is known of it.
        warn: Is told before the hub is asked.

    Raises:
        UserError: If it is not there, or says other than the user.
    """
    where = (sections or {}).get("pretrained")
    if where is None or any(getattr(own, n) != where[n] for n in ("path", "variant", "lora")):
        from sft_rl.pretrained.folders import is_on_hub
        from sft_rl.pretrained.loading import read_pretrained  # here: diffusers is slow to import

        if is_on_hub(str(own.path)):
            if not fetch:
                return {}
            warn(f"pretrained.path: {own.path} is not here; asking the Hugging Face hub for it")
        sections = read_pretrained(own, num_classes=num_classes)
    assert sections is not None
    _check_no_contradiction(given, sections, path=own.path)
    return sections


def with_hash(model: ModelConfig, pretrained: PretrainedConfig) -> PretrainedConfig:
    """Fill in the hash of the trained weights that a network of one's own brings, if it does."""
    if pretrained.path is not None:
        raise UserError(
            f"pretrained.path: {pretrained.path} and model.factory: {model.factory} are two "
            "models; leave one out"
        )
    if model.weights is None:
        return pretrained
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
    return PretrainedConfig(sha256=sha256)


def _check_no_contradiction(
    given: Mapping[str, Any], sections: Sections, *, path: str | None
) -> None:
    """Refuse settings that a user gave beside a pretrained model which says otherwise."""
    for key, wanted in given.items():
        section, name, *inner = [*key.split("."), ""]
        if name not in sections.get(section, {}):
            continue
        found = sections[section][name]
        if isinstance(found, dict) and inner[0]:
            found = found.get(inner[0])
        elif isinstance(found, dict):
            continue  # all of them at once: what differs is refused with the images' size
        if wanted != found:
            raise UserError(
                f"{key}: {wanted!r} contradicts pretrained.path: {path} has {found!r}; leave the "
                "setting out"
            )
