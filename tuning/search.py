"""What determines a search, and which configuration each of its trials gets."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from sft_rl.config import Config, RayConfig
from sft_rl.config.extensions import with_typed_options
from sft_rl.config.files import load_config, lookup
from sft_rl.config.plain_yaml import read_file
from sft_rl.distributed import placement
from sft_rl.distributed.session import check_ray
from sft_rl.errors import UserError
from sft_rl.runs.resolve import check_settings
from sft_rl.seeding import derive_seed
from tuning.distribution import Values
from tuning.space import Space, parse_space

Searcher = Literal["random", "optuna"]
Scheduler = Literal["none", "asha", "pbt"]

STEPS = "sampler.num_steps"
DISTANCE = "distance"
"""What trials report on the way: their run's leading distance, on validation data."""
REQUESTS = (
    "rollout.num_workers",
    "rollout.num_cpus_per_worker",
    "rollout.num_gpus_per_worker",
    "learner.num_cpus",
    "learner.num_gpus",
)
"""What a trial asks the machines for."""
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
    def metric(self) -> str:
        """The distance that leads every trial, and ranks them."""
        return self.base.distance

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

    def check(self, address: str | None) -> None:
        """Refuse what cannot work, before anything starts.

        Args:
            address: The cluster to run on; none means this machine.

        Raises:
            UserError: Naming the field, what was given and what is allowed.
        """
        self._check_counts()
        on_cluster = RayConfig(address=address)
        base = self.base
        self.config({}, seed=self.seed + self.seeds + self.final_seeds)  # the last one
        if base.learner.launcher != "local":
            raise UserError(
                f"learner.launcher: got {base.learner.launcher!r}; a search places the learner of "
                "every trial itself, leave it at 'local'"
            )
        check_ray(on_cluster, base.rollout, base.learner, base.reward)
        check_settings(base)
        self._check_space()
        if self.scheduler == "pbt":
            self._check_population()
        if self.searcher == "random":
            for number in range(self.num_trials):
                config = self.config(self.planned(number))
                check_ray(on_cluster, config.rollout, config.learner, config.reward)
                check_settings(config)

    def check_room(self, nodes: placement.Nodes) -> None:
        """Refuse trials that the nodes could never hold.

        Raises:
            UserError: With what the largest one asks for and what exists.
        """
        largest = {
            key: max(distribution.values)
            for key, distribution in self.space.distributions.items()
            if key in REQUESTS
        }
        config = self.config(largest)
        learner = placement.learner_bundle(config.learner)
        placement.check_room(nodes, learner, config.rollout, config.reward)
        trial = [learner, *placement.worker_bundles(config.rollout)]
        trial += placement.scorer_bundles(config.reward)
        if self.scheduler == "pbt" and not placement.fits(nodes.values(), trial * self.num_trials):
            raise UserError(  # Ray's would pause trials for each other, for ever
                f"--scheduler pbt: no room for all {self.num_trials} trials at once, which take "
                f"over from each other: {placement.described(nodes)}; take fewer, or set "
                "learner.num_cpus or rollout.num_cpus_per_worker lower"
            )

    def _check_counts(self) -> None:
        for name, number in (("--num-trials", self.num_trials), ("--seeds", self.seeds)):
            if number < 1:
                raise UserError(f"{name}: must be at least 1, got {number}")
        if self.final_seeds < 0 or self.final_seeds == 1:
            raise UserError(
                f"--final-seeds: must be 0 for none, or at least 2, since one gives no error; got "
                f"{self.final_seeds}"
            )
        if self.seeds > 1 and self.scheduler != "none":
            raise UserError(
                f"--seeds: --scheduler {self.scheduler} decides on single trials while they run, "
                f"use --seeds 1; got {self.seeds}"
            )
        if all(d.num_values == 1 for d in self.space.distributions.values()):
            raise UserError(
                f"--search {self.space.name}: nothing is left to search, all keys have one value"
            )

    def _check_space(self) -> None:
        """Try every bound and option on its own, or beside what it depends on."""
        where = f"--search {self.space.name}"
        steps = self.space.distributions.get(STEPS)
        if steps is not None and steps.when:
            raise UserError(f"{where}: {STEPS}: cannot depend on others, all are compared by it")
        for key, distribution in self.space.distributions.items():
            beside = self.space.needed(key)
            try:
                own = lookup(self.config(beside), key)
                if distribution.num_values == math.inf and isinstance(own, int):
                    raise UserError(
                        f"{key}: needs whole numbers, use randint, choice or grid instead of "
                        f"{distribution.kind}"
                    )
                for value in distribution.values:
                    self.config({**beside, key: value})
            except (UserError, KeyError) as error:
                said = f"{key}: nothing declares it" if isinstance(error, KeyError) else error
                raise UserError(f"{where}: {said}") from error

    def _check_population(self) -> None:
        wrong = [
            key
            for key, d in self.space.distributions.items()
            if not key.endswith("learning_rate") or d.num_values < math.inf or d.when
        ]
        if wrong:
            raise UserError(
                "--scheduler pbt: only learning rates drawn from uniform or loguniform can "
                f"change while a trial runs; set {wrong[0]}=VALUE on the command line"
            )
        if self.searcher != "random":
            raise UserError("--scheduler pbt: chooses its own values, use --searcher random")
        if self.final_seeds:
            raise UserError(
                "--final-seeds: under pbt rates change on the way, so that no configuration could "
                f"be trained again; use 0, got {self.final_seeds}"
            )
        if self.num_trials < 2:
            raise UserError(
                f"--num-trials: a population needs at least 2 trials, got {self.num_trials}"
            )

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
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"--resume: {file} is damaged: {error}") from error
