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
      training.batch_size: {lograndint: [64, 512], step: 64}  # 64, 128, 192 …
      ppo.clip_range: {loguniform: [1.0e-2, 0.5], when: {algorithm: ppo}}  # of that choice alone
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any, TypeVar

from pydantic import ValidationError

from sft_rl.config import Section
from sft_rl.config.files import check_key, explain
from sft_rl.config.plain_yaml import read_file
from sft_rl.errors import UserError, did_you_mean
from tuning.constants import ASHA, PBT
from tuning.distribution import Distribution, Values, parse_distribution

T = TypeVar("T", bound=Section)

TOP_LEVEL = ("description", "settings", "space", "asha", "pbt")
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
class Space:
    """A search space.

    Attributes:
        name: Name of a ready space, or the file it came from.
        distributions: By configuration key.
        settings: Settings of every trial, by key; the command line wins over them.
        asha: Constants of that scheduler.
        pbt: Constants of that one.
    """

    name: str
    distributions: Mapping[str, Distribution]
    settings: Mapping[str, Any]
    asha: ASHA = field(default_factory=ASHA)
    pbt: PBT = field(default_factory=PBT)

    @property
    def grid(self) -> list[Values]:
        """All combinations of the ``grid`` keys; one empty combination if there is none."""
        points: list[Values] = [{}]
        for key, d in self.distributions.items():
            if d.kind == "grid":
                longer = [
                    [{**point, key: value} for value in d.values]
                    if d.holds_under(point)
                    else [point]
                    for point in points
                ]
                points = list(itertools.chain.from_iterable(longer))
        return points

    @property
    def drawn(self) -> dict[str, Distribution]:
        """The keys whose values are drawn rather than listed."""
        return {key: d for key, d in self.distributions.items() if d.kind != "grid"}

    def filled(self, values: Values, value_of: Callable[[str, Distribution], Any]) -> Values:
        """Add the keys that are searched beside what is given, and beside each other.

        Args:
            values: Values of some keys.
            value_of: Gives that of another.
        """
        values = dict(values)
        for key, d in self.distributions.items():
            if key not in values and d.holds_under(values):
                values[key] = value_of(key, d)
        return values

    def needed(self, key: str) -> Values:
        """Values of other keys with which a key is searched, the first of those that will do."""
        when = self.distributions[key].when
        found: Values = {}
        for parent, options in when.items():
            found |= {**self.needed(parent), parent: options[0]}
        return found

    def without(self, fixed: Mapping[str, Any]) -> Space:
        """Leave out keys that are fixed on the command line, and what depends on other values.

        Raises:
            UserError: If nothing is left to search.
        """
        rest: dict[str, Distribution] = {}
        for key, d in self.distributions.items():
            met = all(fixed[k] in options for k, options in d.when.items() if k in fixed)
            gone = (k for k in d.when if k not in fixed and k not in rest)
            if key not in fixed and met and not any(gone):
                when = {k: options for k, options in d.when.items() if k not in fixed}
                rest[key] = replace(d, when=when)
        if not rest:
            raise UserError(f"--search {self.name}: nothing is left to search, all keys are set")
        settings = {k: v for k, v in self.settings.items() if k not in fixed}
        return replace(self, distributions=rest, settings=settings)

    def to_tree(self) -> dict[str, Any]:
        """Return the space as its file would say it; :func:`parse_space` reads it back."""
        space: dict[str, Any] = {}
        for key, d in self.distributions.items():
            space[key] = {d.kind: list(d.values)}
            if d.step is not None:
                space[key]["step"] = d.step
            if d.when:
                space[key]["when"] = {k: list(options) for k, options in d.when.items()}
        constants = {"asha": self.asha.model_dump(), "pbt": self.pbt.model_dump()}
        return {"settings": dict(self.settings), "space": space, **constants}


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
    distributions: dict[str, Distribution] = {}
    for key, given in tree["space"].items():
        section = key.split(".")[0]
        if section in NOT_SEARCHED:
            raise UserError(f"{where}: {key}: cannot be searched, {NOT_SEARCHED[section]}")
        distributions[key] = parse_distribution(f"{where}: {key}", given)
        _check_when(f"{where}: {key}", distributions[key], distributions)
    asha, pbt = _constants(where, tree, ASHA), _constants(where, tree, PBT)
    return Space(name, distributions, settings, asha, pbt)


def _constants(where: str, tree: dict[str, Any], kind: type[T]) -> T:
    section = kind.__name__.lower()
    try:
        return kind.model_validate(tree.get(section) or {})
    except ValidationError as error:
        raise UserError(f"{where}: {section}.{explain(error)}") from error


def _check_key(where: str, key: str) -> None:
    try:
        check_key(key)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _check_when(where: str, own: Distribution, known: Mapping[str, Distribution]) -> None:
    """Refuse conditions on what is not searched before, and on values that nothing takes."""
    for key, options in own.when.items():
        parent = known.get(key)
        if parent is None or parent is own:
            raise UserError(
                f"{where}: 'when' names {key!r}, which must be searched, and stand above"
            )
        if own.kind == "grid" and parent.kind != "grid":
            raise UserError(
                f"{where}: a grid is laid out before anything is drawn, so it cannot depend on "
                f"{key!r}; make that a grid, or this a choice"
            )
        if wrong := [value for value in options if not parent.contains(value)]:
            raise UserError(f"{where}: 'when' {key} is {wrong[0]!r}, which the search never takes")
