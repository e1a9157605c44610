"""What determines a search, and which configuration each of its trials gets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import yaml

from sft_rl.config import Config, RayConfig
from sft_rl.config.extensions import with_typed_options
from sft_rl.config.files import load_config, lookup
from sft_rl.distributed import placement
from sft_rl.distributed.session import check_ray
from sft_rl.errors import UserError
from sft_rl.runs.resolve import check_settings
from sft_rl.seeding import derive_seed
from tuning.space import Space, Values, parse_space

Searcher = Literal["random", "optuna"]
Scheduler = Literal["none", "asha", "pbt"]
SEARCHERS: tuple[str, ...] = get_args(Searcher)
SCHEDULERS: tuple[str, ...] = get_args(Scheduler)

STEPS = "sampler.num_steps"
DISTANCE = "distance"
"""What trials report on the way: their run's leading distance, on validation data."""
METRICS = {
    "two_sample": ("two_sample", "excess", "sliced_wasserstein", "earth_movers", "mmd"),
    "sliced_wasserstein": ("sliced_wasserstein", "earth_movers", "mmd"),
    **dict.fromkeys(("frechet_inf", "frechet", "kernel"), ("frechet_inf", "frechet", "kernel")),
    "fid": ("fid", "fid_inf", "kid"),
}
"""What can rank trials, by the distance that leads their runs."""
REQUESTS = (
    "rollout.num_workers",
    "rollout.num_cpus_per_worker",
    "rollout.num_gpus_per_worker",
    "learner.num_cpus",
    "learner.num_gpus",
)
"""What a trial asks the machines for."""
FILE = "search.yaml"
FORMAT = "sft-rl search 1"


@dataclass(frozen=True)
class Search:
    """Everything that determines a search; saved as ``search.yaml``.

    Attributes:
        preset: The preset that trials start from.
        settings: The user's own ``key=value``, for every trial.
        space: What is searched.
        num_trials: How many trials.
        seed: Fixes the configurations and is every trial's seed.
        searcher: How configurations are chosen.
        scheduler: What happens to trials on the way.
        metric: The distance that ranks the trials.
    """

    preset: str
    settings: tuple[str, ...]
    space: Space
    num_trials: int
    seed: int
    searcher: Searcher = "random"
    scheduler: Scheduler = "none"
    metric: str = "two_sample"

    def config(self, values: Values) -> Config:
        """Build a trial's configuration: preset, the space's settings, the user's, the values."""
        fixed = [f"{key}={json.dumps(value)}" for key, value in self.space.settings.items()]
        searched = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        own = [*fixed, *self.settings, f"seed={self.seed}"]
        if self.scheduler == "pbt":  # a trial can only take over what was saved at an evaluation
            every = lookup(load_config(self.preset, own), "training.eval_every")
            own.append(f"training.checkpoint_every={every}")
        config = load_config(self.preset, [*own, *searched])
        # The search knows the cluster; a trial's configuration works without it.
        return with_typed_options(config.model_copy(update={"ray": RayConfig()}))

    def planned(self, index: int) -> Values:
        """Values of trial `index` when they are drawn at random or listed.

        Trials go round the grid. The first round takes the preset's own values for what is
        drawn, so that the winners are never worse than the defaults. A trial depends on the seed
        and its number only.
        """
        grid = self.space.grid
        point = grid[index % len(grid)]
        if self.is_default(index):
            return {**point, **self._defaults(point)}
        rng = np.random.default_rng(derive_seed(self.seed, "search", index))
        return {**point, **{key: d.sample(rng) for key, d in self.space.drawn.items()}}

    def is_default(self, index: int) -> bool:
        """Whether trial `index` runs the preset's own values.

        Those of the first round do, if the space holds the values.
        """
        grid, drawn = self.space.grid, self.space.drawn
        if not drawn or index >= len(grid):
            return False
        defaults = self._defaults(grid[index])
        return all(d.contains(defaults[key]) for key, d in drawn.items())

    def _defaults(self, point: Values) -> Values:
        config = self.config(point)
        return {key: lookup(config, key) for key in self.space.drawn}

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The distances that trials end with, the leading one first."""
        return METRICS[self.config({}).distance]

    @property
    def num_steps_options(self) -> list[int]:
        """The step counts that are searched, or the one that all trials have."""
        distribution = self.space.distributions.get(STEPS)
        if distribution is None:
            return [int(lookup(self.config({}), STEPS))]
        if distribution.kind in ("grid", "choice"):
            return sorted(distribution.values)
        low, high = distribution.values
        return list(range(int(low), int(high) + 1))

    def check(self, address: str | None) -> None:
        """Refuse what cannot work, before anything starts.

        Args:
            address: The cluster to run on; none means this machine.

        Raises:
            UserError: Naming the field, what was given and what is allowed.
        """
        if self.num_trials < 1:
            raise UserError(f"--num-trials: must be at least 1, got {self.num_trials}")
        if self.metric not in self.metrics:
            raise UserError(
                f"--metric: no trial reports {self.metric!r}; choose from {', '.join(self.metrics)}"
            )
        if self.metric != self.metrics[0] and self.scheduler != "none":
            raise UserError(
                f"--metric: {self.metric} is measured at the end of a trial only, "
                f"--scheduler {self.scheduler} needs {self.metrics[0]}"
            )
        on_cluster = RayConfig(address=address)
        base = self.config({})
        if base.learner.launcher != "local":
            raise UserError(
                f"learner.launcher: got {base.learner.launcher!r}; a search places the learner of "
                "every trial itself, leave it at 'local'"
            )
        check_ray(on_cluster, base.rollout, base.learner)
        check_settings(base)
        self._check_space(base)
        if self.scheduler == "pbt":
            self._check_population()
        if self.searcher == "random":
            for index in range(self.num_trials):
                config = self.config(self.planned(index))
                check_ray(on_cluster, config.rollout, config.learner)
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
        placement.check_room(nodes, placement.learner_bundle(config.learner), config.rollout)

    def _check_space(self, base: Config) -> None:
        """Try every bound and option on its own."""
        for key, distribution in self.space.distributions.items():
            if distribution.kind in ("uniform", "loguniform"):
                kind = type(lookup(base, key))
                if kind in (int, bool):
                    raise UserError(
                        f"--search {self.space.name}: {key}: needs whole numbers, use randint, "
                        f"choice or grid instead of {distribution.kind}"
                    )
            for value in distribution.values:
                try:
                    self.config({key: value})
                except UserError as error:
                    raise UserError(f"--search {self.space.name}: {error}") from error

    def _check_population(self) -> None:
        wrong = [
            key
            for key, d in self.space.distributions.items()
            if not key.endswith("learning_rate") or d.kind not in ("uniform", "loguniform")
        ]
        if wrong:
            raise UserError(
                "--scheduler pbt: only learning rates drawn from uniform or loguniform can "
                f"change while a trial runs; set {wrong[0]}=VALUE on the command line"
            )
        if self.searcher != "random":
            raise UserError("--scheduler pbt: chooses its own values, use --searcher random")
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
            tree: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"--resume: {folder} holds no search (no readable {FILE})") from error
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
                metric=tree["metric"],
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"--resume: {file} is damaged: {error}") from error


def pareto_front(points: Sequence[tuple[int, float]]) -> list[bool]:
    """Say of each (steps, distance) whether no other has fewer or equal steps and is better."""
    order = sorted(range(len(points)), key=lambda i: points[i])
    on_front, best = [False] * len(points), float("inf")
    for i in order:
        on_front[i] = points[i][1] < best
        best = min(best, points[i][1])
    return on_front
