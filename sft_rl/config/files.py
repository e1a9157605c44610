"""Ready configurations, and how a preset and a user's own settings become one.

A preset is a YAML file: the settings that differ from the defaults, and under ``when`` blocks
that apply only to some step counts or algorithms::

    when:
      - if: {sampler.num_steps: [2, 3, 4]}
        set: {training.num_iterations: 800}

A preset that ``extends`` another has its settings and blocks, then its own. Later settings win:
defaults, preset, its matching blocks in order, the user's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from sft_rl.config import Config, ResolvedConfig
from sft_rl.config.plain_yaml import read_file, read_text, read_value
from sft_rl.errors import UserError, did_you_mean, shortened

Tree = dict[str, Any]

T = TypeVar("T", bound=Config)

SHORTHANDS = {"reward": "reward.terms"}
"""Sections that may be given as a word: short for one of their keys."""

PRESETS = resources.files("sft_rl.config") / "presets"


def preset_names() -> list[str]:
    """Return the names of all presets."""
    files = PRESETS.iterdir()
    return sorted(f.name[:-5] for f in files if f.name.endswith(".yaml"))


def load_config(preset: str, overrides: Iterable[str] = ()) -> Config:
    """Build the configuration of a preset with ``key=value`` overrides.

    Raises:
        UserError: For an unknown preset or key, or a value that is not allowed.
    """
    if preset not in preset_names():
        raise UserError(f"preset: {preset!r} is unknown; {did_you_mean(preset, preset_names())}")
    tree, blocks = _read(preset)
    overrides = list(overrides)
    own = parse_overrides(overrides)
    selected: Config = _build(_merged(tree, own))
    for block in blocks:
        if all(_matches(lookup(selected, k), v) for k, v in block["if"].items()):
            tree = _merged(tree, _nested(block["set"].items()))
    return _build({**_merged(tree, own), "preset": preset}).with_own_keys(_keys(overrides))


def _read(preset: str) -> tuple[Tree, list[Tree]]:
    """Read a preset's settings and its blocks, those of what it extends before its own."""
    text = PRESETS.joinpath(f"{preset}.yaml").read_text()
    tree: Tree = read_text(text, Config) or {}
    blocks = tree.pop("when", [])
    base = tree.pop("extends", None)
    if base is None:
        return tree, blocks
    base_tree, base_blocks = _read(base)
    return _merged(base_tree, tree), [*base_blocks, *blocks]


def load_config_of(preset: str | None, overrides: Iterable[str], file: str | None) -> Config:
    """Build the configuration that a command line names: a preset, or a file.

    Args:
        preset: The first word; it is a setting, too, where a file is given.
        overrides: The words after it, ``key=value``.
        file: A ``config.yaml`` instead of a preset.

    Raises:
        UserError: If both are missing, or anything in them is wrong.
    """
    if file is not None:
        return load_config_file(file, [preset, *overrides] if preset else overrides)
    if preset is None:
        raise UserError("PRESET: is missing; name one from `sft-rl presets`, or give --config FILE")
    return load_config(preset, overrides)


def load_config_file(path: str, overrides: Iterable[str] = ()) -> Config:
    """Build the configuration of a ``config.yaml``, as a run leaves it, with overrides.

    What the run looked up in its data is left out: it will be looked up again.
    """
    tree = _read_settings(path)
    for name in ResolvedConfig.model_fields.keys() - Config.model_fields.keys():
        tree.pop(name, None)
    overrides = list(overrides)
    config: Config = _build(_merged(tree, parse_overrides(overrides)))
    return config.with_own_keys(_keys(overrides))


def with_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """Change some settings of a configuration; blocks of its preset are not looked at again."""
    overrides = list(overrides)
    changed: Config = _build(_merged(config.model_dump(), parse_overrides(overrides)))
    return changed.with_own_keys([*config.own_keys, *_keys(overrides)])


def load_resolved(path: str) -> ResolvedConfig:
    """Read the ``config.yaml`` that a run has written."""
    tree = _read_settings(path)
    if "samples" not in tree:
        raise UserError(
            f"run: {path} does not say what samples are; it was made by an older version, or is "
            "no run's own: train again, by `sft-rl train --config`"
        )
    return _build(tree, ResolvedConfig)


def _read_settings(path: str) -> Tree:
    try:
        tree = read_file(path, Config)
    except UserError as error:
        raise UserError(f"config: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"config: {path} holds no settings, expected a mapping of keys")
    return tree


def dump_config(config: Config) -> str:
    """Return the whole configuration as YAML; :func:`load_config_file` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def parse_overrides(overrides: Iterable[str]) -> Tree:
    """Turn ``["sampler.num_steps=4"]`` into a nested dictionary; values are read by their field."""
    pairs = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"{text!r}: a setting is written key=value, as in seed=1")
        key = SHORTHANDS.get(key, key)
        check_key(key)
        try:
            pairs.append((key, read_value(value, _kind_of(key))))
        except UserError as error:
            raise UserError(f"{key}: cannot read {shortened(value)}: {error}") from error
    return _nested(pairs)


def _keys(overrides: Iterable[str]) -> list[str]:
    return [text.partition("=")[0] for text in overrides]


def named_overrides(
    overrides: Iterable[str] | Mapping[str, Any], settings: Mapping[str, Any]
) -> list[str]:
    """Turn Python's values into ``key=value`` overrides.

    Args:
        overrides: Overrides, or values by dotted key.
        settings: Values by the last part of a key, which must be the only one of that name.

    Raises:
        UserError: For a name that no key or several keys end with.
    """
    pairs = dict(overrides) if isinstance(overrides, Mapping) else {}
    for name, value in settings.items():
        keys = [key for key in all_keys() if key == name or key.endswith(f".{name}")]
        keys = [SHORTHANDS[name]] if name in SHORTHANDS else keys
        if not keys:
            leaves = {key.rsplit(".", 1)[-1] for key in all_keys()}
            raise UserError(f"{name}: unknown setting; {did_you_mean(name, leaves)}")
        if len(keys) > 1 and name not in keys:
            raise UserError(f"{name}: {' and '.join(keys)} have that name; give overrides={{…}}")
        pairs[name if name in keys else keys[0]] = value
    texts = [] if isinstance(overrides, Mapping) else list(overrides)
    return [*texts, *(f"{key}={_as_yaml(value)}" for key, value in pairs.items())]


def _as_yaml(value: Any) -> str:
    try:
        return json.dumps(value)
    except TypeError as error:
        raise UserError(f"a setting's value must be plain, got {value!r}") from error


def lookup(config: Config, key: str) -> Any:
    """Return the value of a dotted key, as ``sampler.num_steps``."""
    node: Any = config
    for part in key.split("."):
        node = node[part] if isinstance(node, dict) else getattr(node, part)
    return node


def all_keys(model: type[BaseModel] = Config, prefix: str = "") -> dict[str, str]:
    """Return every dotted key with its line of documentation."""
    keys: dict[str, str] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys |= all_keys(kind, f"{prefix}{name}.")
        else:
            keys[prefix + name] = " ".join((field.description or "").split())
    return keys


def _kind_of(key: str) -> Any:
    """Type of a setting; anything goes inside a dictionary."""
    node: Any = Config
    for part in key.split("."):
        if not (isinstance(node, type) and issubclass(node, BaseModel)):
            return Any
        node = node.model_fields[part].annotation
    return node


def check_key(key: str) -> None:
    """Refuse a dotted key that is no setting; what is in a dictionary is checked where it is used.

    Raises:
        UserError: With the nearest one.
    """
    known = all_keys()
    parent, _, name = key.rpartition(".")
    if key in known or (name and parent in known and isinstance(lookup(Config(), parent), dict)):
        return
    sections = {k.split(".")[0] for k in known if "." in k}
    if key in sections:
        inside = ", ".join(k for k in known if k.startswith(f"{key}."))
        raise UserError(f"{key}: is a section, set one of its keys: {inside}")
    leaf = {k.rsplit(".", 1)[-1]: k for k in known}
    hint = f"did you mean {leaf[key]!r}?" if key in leaf else did_you_mean(key, known)
    raise UserError(f"{key}: unknown setting; {hint}")


def _nested(pairs: Iterable[tuple[str, Any]]) -> Tree:
    tree: Tree = {}
    for key, value in pairs:
        *sections, name = key.split(".")
        node = tree
        for depth, section in enumerate(sections, start=1):
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                whole = ".".join(sections[:depth])
                raise UserError(f"{key}: {whole} is set to {shortened(node)}, too; give one")
        node[name] = value
    return tree


def _merged(base: Tree, extra: Tree) -> Tree:
    merged = dict(base)
    for key, value in extra.items():
        old = merged.get(key)
        if isinstance(value, dict) and old is not None:
            if not isinstance(old, dict):
                raise UserError(f"{key}: expected keys and values, got {shortened(old)}")
            value = _merged(old, value)
        merged[key] = value
    return merged


def _matches(value: Any, wanted: Any) -> bool:
    return value in wanted if isinstance(wanted, list) else value == wanted


def _build(tree: Tree, kind: type[T] = Config) -> T:  # type: ignore[assignment]
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error)) from error


def explain(error: ValidationError) -> str:
    """Put pydantic's first finding into one line: field, what is allowed, what was given."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown setting; {did_you_mean(key, all_keys())}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" and ":" in message.split(" ")[0]:
        return message
    return f"{key}: {message[0].lower()}{message[1:]}, got {shortened(first['input'])}"
