"""Settings that lead to files: which they are, and what of them a job takes along."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sft_rl.config import Config
from sft_rl.config.extensions import is_reference
from sft_rl.errors import NEIGHBOURS, UserError, home_expanded

PATHS = (
    "data.path",
    "metrics.clip_path",
    "metrics.dinov2_path",
    "metrics.inception_path",
    "metrics.reference_stats",
    "model.weights",
    "prompts.path",
    "pretrained.lora",
    "pretrained.path",
)
"""Settings that are paths; the last may be a name on the hub, too."""


def with_absolute_paths(config: Config) -> Config:
    """Make paths absolute, so that they mean the same in every process of a run."""
    for key, given in _paths(config):
        name, _, field = key.partition(".")
        path = _hub_name(given) if key == "pretrained.path" else None
        if path is None:
            path = str(home_expanded(given, key).absolute())
        section = getattr(config, name).model_copy(update={field: path})
        config = config.model_copy(update={name: section})
    return config


def local_files(config: Config) -> tuple[str, ...]:
    """Files and folders that a configuration needs beside it, relative to the current folder.

    They are its relative paths, there or not, the modules of a user's own that it names if they
    are here, and files here that values of `options` name. A path that begins with ``/`` or ``~``
    is looked for where the configuration is used.
    """
    paths = [p for key, p in _paths(config) if key != "pretrained.path" or _hub_name(p) is None]
    named = [str(value) for value in config.options.values() if _is_here(str(value))]
    relative = [p for p in (*paths, *named) if not p.startswith(("/", "~"))]
    return tuple(dict.fromkeys([*relative, *_modules(config)]))


def _paths(config: Config) -> Iterator[tuple[str, str]]:
    """The settings that are paths, as far as they are given."""
    for key in PATHS:
        name, _, field = key.partition(".")
        given = getattr(getattr(config, name), field)
        # The function of model.factory may bring the weights: that is no path.
        if given is not None and (name, given) != ("model", "factory"):
            yield key, given


def _modules(config: Config) -> Iterator[str]:
    """Modules and packages in the current folder that the configuration names."""
    names = [config.algorithm, config.critic.objective]
    names += [term.use for term in config.reward.terms if not term.is_url]
    names += [s.factory or "" for s in (config.data, config.model, config.critic, config.value)]
    for top in (name.partition(":")[0].partition(".")[0] for name in names if is_reference(name)):
        if top not in ("sft_rl", *NEIGHBOURS):
            yield from (place for place in (f"{top}.py", top) if _is_here(place))


def _is_here(name: str) -> bool:
    return bool(name.strip(". ")) and len(name) < 256 and "\0" not in name and Path(name).exists()


def _hub_name(given: str) -> str | None:
    """The name of a model on the hub that a path is, or None if it is one on this machine.

    ``hub:owner/name`` says so; ``owner/name`` does if there is no such folder, nor one called
    ``owner``, in which ``name`` may be missing.

    Raises:
        UserError: If it can only be the hub's, and is no name there.
    """
    name = given.removeprefix("hub:")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name, re.ASCII):
        if name != given:
            raise UserError(f"pretrained.path: got {given!r}; allowed: hub:owner/name")
        return None
    if name == given and Path(name).parent.exists():
        return None
    if Path(name).exists():
        raise UserError(
            f"pretrained.path: {name} is on this machine, too; take that, or call this command "
            f"where it is not for the hub's"
        )
    return name
