"""What determines a search, and which configuration each of its trials gets."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from sft_rl.config import Config, RayConfig
from sft_rl.config.extensions import with_typed_options
from sft_rl.config.files import load_config, lookup
from sft_rl.config.plain_yaml import read_file
from sft_rl.errors import UserError
from sft_rl.seeding import derive_seed
from tuning.distribution import Values
from tuning.objective import Objective, load_objective
from tuning.space import Space, parse_space

Searcher = Literal["random", "optuna"]
Scheduler = Literal["none", "asha", "pbt"]

STEPS = "sampler.num_steps"
DISTANCE = "distance"
"""What trials report on the way: their run's leading distance, on validation data."""
FILE = "search.yaml"
FORMAT = "sft-rl search 2"


@dataclass(frozen=True)
class Search:
    """Everything that determines a search; saved as ``search.yaml``.

    Attributes:
        preset: The preset that trials start from.
        settings: The user's own ``key=value``, for every trial.
        space: What is searched.
        num_trials: How many configurations are tried.
        seed: Fixes the configurations, and is the first of the trials' seeds.
        searcher: How configurations are chosen.
        scheduler: What happens to trials on the way.
        seeds: Trials of each configuration, one a seed.
        final_seeds: Trials of each winner after the search, with seeds it has not seen.
        metric: What ranks: the name of a metric, ``module:function``, or ``auto`` for the one that
            leads the preset's runs.
    """

    preset: str
    settings: tuple[str, ...]
    space: Space
    num_trials: int
    seed: int
    searcher: Searcher = "random"
    scheduler: Scheduler = "none"
    seeds: int = 1
    final_seeds: int = 0
    metric: str = "auto"

    def config(self, values: Values, seed: int | None = None) -> Config:
        """Build a trial's configuration: preset, the space's settings, the user's, the values."""
        fixed = [f"{key}={json.dumps(value)}" for key, value in self.space.settings.items()]
        searched = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        own = [*fixed, *self.settings, f"seed={self.seed if seed is None else seed}"]
        if self.scheduler == "pbt":  # a trial can only take over what was saved at an evaluation
            every = lookup(load_config(self.preset, own), "training.eval_every")
            own.append(f"training.checkpoint_every={every}")
        config = load_config(self.preset, [*own, *searched])
        # The search knows the cluster; a trial's configuration works without it.
        return with_typed_options(config.model_copy(update={"ray": RayConfig()}))

    @property
    def num_runs(self) -> int:
        """How many trials there are, without those of the winners."""
        return self.num_trials * self.seeds

    def with_trials(self, num_trials: int) -> Search:
        """The same search with more configurations, or fewer; a grid has no more than its points.

        What each of them is does not change.
        """
        most = num_trials if self.space.drawn else min(num_trials, len(self.space.grid))
        return replace(self, num_trials=most)

    def trial(self, index: int, values: Values) -> dict[str, Any]:
        """Return what trial `index` is given; those of one configuration follow each other."""
        return {"index": index, "values": values, "seed": self.seed + index % self.seeds}

    def planned(self, number: int) -> Values:
        """Values of configuration `number` when they are drawn at random or listed.

        Configurations go round the grid. The first round takes the preset's own values for what
        is drawn, so that they are among what is compared. One depends on the seed and its number
        only.
        """
        grid = self.space.grid
        point = grid[number % len(grid)]
        if self.is_default(number):
            return self._presets(point)
        rng = np.random.default_rng(derive_seed(self.seed, "search", number))
        return self.space.filled(point, lambda _, distribution: distribution.sample(rng))

    def is_default(self, number: int) -> bool:
        """Whether configuration `number` has the preset's own values for all that is drawn.

        Those of the first round have, if the space holds the values.
        """
        grid, drawn = self.space.grid, self.space.drawn
        if not drawn or number >= len(grid):
            return False
        values = self._presets(grid[number])
        return all(d.contains(values[key]) for key, d in drawn.items() if key in values)

    def _presets(self, point: Values) -> Values:
        """Fill in the preset's own values of what is searched beside a point."""
        config = self.config(point)
        return self.space.filled(point, lambda key, _: lookup(config, key))

    def own(self, num_steps: int) -> Values:
        """The preset's own values, at a number of steps, of everything that is searched."""
        if num_steps not in self._own:
            self._own[num_steps] = self._look_up_own(num_steps)
        return self._own[num_steps]

    @cached_property
    def _own(self) -> dict[int, Values]:
        """By number of steps; a configuration takes a while to build."""
        return {}

    def _look_up_own(self, num_steps: int) -> Values:
        own = self._presets({STEPS: num_steps} if STEPS in self.space.distributions else {})
        return dict(json.loads(json.dumps(own)))  # as records keep them

    @cached_property
    def base(self) -> Config:
        """The configuration without any searched value."""
        return self.config({})

    @property
    def objective(self) -> Objective:
        """What ranks the trials, the less the better."""
        return load_objective(self.base.watched, self.base.distance, self.metric)

    def value(self, values: Values, key: str) -> Any:
        """Return a trial's value of a key that the preset does not make depend on others."""
        return values[key] if key in values else lookup(self.base, key)

    @property
    def num_steps_options(self) -> list[int]:
        """The step counts that are searched, or the one that all trials have."""
        distribution = self.space.distributions.get(STEPS)
        if distribution is None:
            return [self.base.sampler.num_steps]
        return sorted(distribution.options)

    def save(self, folder: Path) -> None:
        """Write ``search.yaml``."""
        tree = {
            "format": FORMAT,
            "preset": self.preset,
            "settings": list(self.settings),
            "search": {"name": self.space.name, **self.space.to_tree()},
            "num_trials": self.num_trials,
            "seed": self.seed,
            "searcher": self.searcher,
            "scheduler": self.scheduler,
            "seeds": self.seeds,
            "final_seeds": self.final_seeds,
            "metric": self.metric,
        }
        (folder / FILE).write_text(yaml.safe_dump(tree, sort_keys=False))

    @staticmethod
    def load(folder: Path) -> Search:
        """Read a search back.

        Raises:
            UserError: If the folder holds none.
        """
        file = folder / FILE
        try:
            tree = read_file(file)
        except UserError as error:
            raise UserError(f"--resume: {folder} holds no search ({error})") from error
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            raise UserError(f"--resume: {file} is not a {FORMAT!r}")
        try:
            space = dict(tree["search"])
            return Search(
                preset=tree["preset"],
                settings=tuple(tree["settings"]),
                space=parse_space(space.pop("name"), space),
                num_trials=int(tree["num_trials"]),
                seed=int(tree["seed"]),
                searcher=tree["searcher"],
                scheduler=tree["scheduler"],
                seeds=int(tree["seeds"]),
                final_seeds=int(tree["final_seeds"]),
                metric=tree.get("metric", "auto"),
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"--resume: {file} is damaged: {error}") from error
