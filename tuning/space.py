"""Search spaces: which configuration keys are searched, and from which distributions.

A space is a YAML file::

    description: One line.
    settings: {rollout.num_workers: 0}      # fixed for every trial; the command line wins
    space:
      sampler.num_steps: {grid: [2, 4]}     # every value in turn
      policy.learning_rate: {loguniform: [1.0e-5, 1.0e-3]}
      critic.regulariser: {choice: [gradient_penalty, none]}
      critic.drift_weight: {uniform: [0.0, 0.01]}
      training.n_critic: {randint: [1, 5]}  # both ends included
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, get_args

import numpy as np

from sft_rl.config.files import check_key
from sft_rl.config.plain_yaml import read_file
from sft_rl.errors import UserError, did_you_mean

Values = dict[str, Any]

Kind = Literal["choice", "uniform", "loguniform", "randint", "grid"]
KINDS: tuple[str, ...] = get_args(Kind)
TOP_LEVEL = ("description", "settings", "space")
NOT_SEARCHED = {
    "preset": "it is the command's first word",
    "description": "it changes nothing",
    "seed": "a lucky seed is no setting; --seeds gives every configuration several",
    "device": "results of different devices are not compared",
    "data": "distances to different data are not compared",
    "metrics": "distances of different protocols are not compared",
    "ray": "a search runs on one cluster",
}


@dataclass(frozen=True)
class Distribution:
    """Where the values of one key come from.

    Attributes:
        kind: ``grid`` and ``choice`` take one of `values`; ``uniform``, ``loguniform`` and
            ``randint`` lie between two, both included.
        values: The options, or the lower and the upper bound.
    """

    kind: Kind
    values: tuple[Any, ...]

    @property
    def num_values(self) -> float:
        """How many values there are; infinite between two bounds of a real number."""
        if self.kind in ("grid", "choice"):
            return len(self.values)
        return self.values[1] - self.values[0] + 1 if self.kind == "randint" else math.inf

    def contains(self, value: Any) -> bool:
        """Whether a value is one of the options or lies within the bounds."""
        if self.kind in ("grid", "choice"):
            return value in self.values
        low, high = self.values
        return isinstance(value, int | float) and low <= value <= high

    def sample(self, rng: np.random.Generator) -> Any:
        """Draw one value; plain Python numbers."""
        if self.kind in ("grid", "choice"):
            return self.values[int(rng.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "randint":
            return int(rng.integers(low, high, endpoint=True))
        if self.kind == "uniform":
            return float(rng.uniform(low, high))
        return float(np.clip(math.exp(rng.uniform(math.log(low), math.log(high))), low, high))


@dataclass(frozen=True)
class Space:
    """A search space.

    Attributes:
        name: Name of a ready space, or the file it came from.
        distributions: By configuration key.
        settings: Settings of every trial, by key; the command line wins over them.
    """

    name: str
    distributions: Mapping[str, Distribution]
    settings: Mapping[str, Any]

    @property
    def grid(self) -> list[Values]:
        """All combinations of the ``grid`` keys; one empty combination if there is none."""
        keys = [key for key, d in self.distributions.items() if d.kind == "grid"]
        options = [self.distributions[key].values for key in keys]
        return [dict(zip(keys, point, strict=True)) for point in itertools.product(*options)]

    @property
    def drawn(self) -> dict[str, Distribution]:
        """The keys whose values are drawn rather than listed."""
        return {key: d for key, d in self.distributions.items() if d.kind != "grid"}

    def without(self, keys: set[str]) -> Space:
        """Leave out keys that are fixed on the command line.

        Raises:
            UserError: If nothing is left to search.
        """
        rest = {k: d for k, d in self.distributions.items() if k not in keys}
        if not rest:
            raise UserError(f"--search {self.name}: nothing is left to search, all keys are set")
        settings = {k: v for k, v in self.settings.items() if k not in keys}
        return Space(self.name, rest, settings)

    def to_tree(self) -> dict[str, Any]:
        """Return the space as its file would say it; :func:`parse_space` reads it back."""
        space = {k: {d.kind: list(d.values)} for k, d in self.distributions.items()}
        return {"settings": dict(self.settings), "space": space}


def space_names() -> list[str]:
    """Return the names of the ready spaces."""
    files = resources.files("tuning.spaces").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def load_space(name: str) -> Space:
    """Load a ready space by its name, or a YAML file.

    Raises:
        UserError: If there is none, or it is wrong.
    """
    if name in space_names():
        return parse_space(name, read_file(str(resources.files("tuning.spaces") / f"{name}.yaml")))
    if not name.endswith((".yaml", ".yml")):
        hint = did_you_mean(name, space_names())
        raise UserError(f"--search: {name!r} is unknown; {hint}; or give a .yaml file")
    try:
        tree = read_file(name)
    except UserError as error:
        raise UserError(f"--search: {error}") from error
    return parse_space(name, tree)


def parse_space(name: str, tree: Any) -> Space:
    """Check what a file says and build the space.

    Raises:
        UserError: Naming the key, what was given and what is allowed.
    """
    where = f"--search {name}"
    if not isinstance(tree, dict) or not isinstance(tree.get("space"), dict):
        raise UserError(f"{where}: expected a mapping 'space' from settings to distributions")
    for key in tree:
        if key not in TOP_LEVEL:
            raise UserError(f"{where}: {key!r} is unknown; {did_you_mean(str(key), TOP_LEVEL)}")
    settings = tree.get("settings") or {}
    if not isinstance(settings, dict):
        raise UserError(f"{where}: 'settings' must be a mapping, got {settings!r}")
    if not tree["space"]:
        raise UserError(f"{where}: the space is empty, give at least one key to search")
    for key in (*settings, *tree["space"]):
        _check_key(where, str(key))
    both = settings.keys() & tree["space"].keys()
    if both:
        raise UserError(f"{where}: {both.pop()}: is both in 'settings' and in 'space'")
    distributions = {}
    for key, given in tree["space"].items():
        section = key.split(".")[0]
        if section in NOT_SEARCHED:
            raise UserError(f"{where}: {key}: cannot be searched, {NOT_SEARCHED[section]}")
        distributions[key] = parse_distribution(f"{where}: {key}", given)
    return Space(name, distributions, settings)


def _check_key(where: str, key: str) -> None:
    try:
        check_key(key)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def parse_distribution(where: str, given: Any) -> Distribution:
    """Check one ``{kind: [...]}``; `where` begins the error's line."""
    if not isinstance(given, dict) or len(given) != 1:
        raise UserError(f"{where}: expected one of {{{', '.join(KINDS)}}}: [...], got {given!r}")
    kind, values = next(iter(given.items()))
    if kind not in KINDS:
        hint = did_you_mean(str(kind), KINDS)
        raise UserError(f"{where}: distribution {kind!r} is unknown; {hint}")
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: {kind} needs a list with at least one value, got {values!r}")
    if kind in ("grid", "choice"):
        if any(value in values[:i] for i, value in enumerate(values)):
            raise UserError(f"{where}: {kind} lists a value twice: {values}")
        return Distribution(kind, tuple(values))
    return Distribution(kind, _bounds(where, kind, values))


def _bounds(where: str, kind: str, values: list[Any]) -> tuple[Any, ...]:
    bounds = values
    whole = kind == "randint"
    wanted = "whole numbers" if whole else "numbers"
    if len(bounds) != 2 or any(isinstance(b, bool) or not _is_number(b, whole) for b in bounds):
        raise UserError(f"{where}: {kind} needs two {wanted} [low, high], got {values!r}")
    low, high = bounds
    if low >= high:
        raise UserError(
            f"{where}: {kind} bounds are equal or the wrong way round, got [{low}, {high}]"
        )
    if kind == "loguniform" and low <= 0:
        raise UserError(f"{where}: loguniform needs bounds above 0, got [{low}, {high}]")
    return (low, high) if whole else (float(low), float(high))


def _is_number(value: Any, whole: bool) -> bool:
    return isinstance(value, int) or (
        not whole and isinstance(value, float) and math.isfinite(value)
    )
