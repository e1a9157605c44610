"""What a search refuses, in one line, before anything starts."""

from __future__ import annotations

import math

from sft_rl.config import RayConfig
from sft_rl.config.files import lookup
from sft_rl.distributed import placement
from sft_rl.distributed.session import check_ray
from sft_rl.errors import UserError
from sft_rl.runs.checks import check_settings
from tuning.objective import load_objective
from tuning.search import STEPS, Search

REQUESTS = (
    "rollout.num_workers",
    "rollout.num_cpus_per_worker",
    "rollout.num_gpus_per_worker",
    "learner.num_cpus",
    "learner.num_gpus",
)
"""What a trial asks the machines for."""


def check_search(search: Search, address: str | None) -> None:
    """Refuse what cannot work, before anything starts.

    Args:
        search: The search.
        address: The cluster to run on; none means this machine.

    Raises:
        UserError: Naming the field, what was given and what is allowed.
    """
    _check_counts(search)
    on_cluster = RayConfig(address=address)
    base = search.base
    search.config({}, seed=search.seed + search.seeds + search.final_seeds)  # the last one
    if base.learner.launcher != "local":
        raise UserError(
            f"learner.launcher: got {base.learner.launcher!r}; a search places the learner of "
            "every trial itself, leave it at 'local'"
        )
    check_ray(on_cluster, base.rollout, base.learner, base.reward)
    check_settings(base)
    load_objective(base.watched, base.distance, search.metric)
    _check_space(search)
    if search.scheduler == "pbt":
        _check_population(search)
    if search.searcher == "random":
        for number in range(search.num_trials):
            config = search.config(search.planned(number))
            check_ray(on_cluster, config.rollout, config.learner, config.reward)
            check_settings(config)


def check_room(search: Search, nodes: placement.Nodes) -> None:
    """Refuse trials that the nodes could never hold.

    Args:
        search: The search.
        nodes: What the nodes have.

    Raises:
        UserError: With what the largest one asks for and what exists.
    """
    largest = {
        key: max(distribution.values)
        for key, distribution in search.space.distributions.items()
        if key in REQUESTS
    }
    config = search.config(largest)
    learner = placement.learner_bundle(config.learner)
    placement.check_room(nodes, learner, config.rollout, config.reward)
    trial = placement.run_bundles(config.learner, config.rollout, config.reward)
    if search.scheduler == "pbt" and not placement.fits(nodes.values(), trial * search.num_trials):
        raise UserError(  # Ray's would pause trials for each other, for ever
            f"--scheduler pbt: no room for all {search.num_trials} trials at once, which take "
            f"over from each other: {placement.described(nodes)}; take fewer, or set "
            "learner.num_cpus or rollout.num_cpus_per_worker lower"
        )


def _check_counts(search: Search) -> None:
    for name, number in (("--num-trials", search.num_trials), ("--seeds", search.seeds)):
        if number < 1:
            raise UserError(f"{name}: must be at least 1, got {number}")
    if search.final_seeds < 0 or search.final_seeds == 1:
        raise UserError(
            f"--final-seeds: must be 0 for none, or at least 2, since one gives no error; got "
            f"{search.final_seeds}"
        )
    if search.seeds > 1 and search.scheduler != "none":
        raise UserError(
            f"--seeds: --scheduler {search.scheduler} decides on single trials while they run, "
            f"use --seeds 1; got {search.seeds}"
        )
    if all(d.num_values == 1 for d in search.space.distributions.values()):
        raise UserError(
            f"--search {search.space.name}: nothing is left to search, all keys have one value"
        )


def _check_space(search: Search) -> None:
    """Try every bound and option on its own, or beside what it depends on."""
    where = f"--search {search.space.name}"
    steps = search.space.distributions.get(STEPS)
    if steps is not None and steps.when:
        raise UserError(f"{where}: {STEPS}: cannot depend on others, all are compared by it")
    for key, distribution in search.space.distributions.items():
        beside = search.space.needed(key)
        try:
            own = lookup(search.config(beside), key)
            if distribution.num_values == math.inf and isinstance(own, int):
                raise UserError(
                    f"{key}: needs whole numbers, use randint, choice or grid instead of "
                    f"{distribution.kind}"
                )
            for value in distribution.values:
                search.config({**beside, key: value})
        except (UserError, KeyError) as error:
            said = f"{key}: nothing declares it" if isinstance(error, KeyError) else error
            raise UserError(f"{where}: {said}") from error


def _check_population(search: Search) -> None:
    wrong = [
        key
        for key, d in search.space.distributions.items()
        if not key.endswith("learning_rate") or d.num_values < math.inf or d.when
    ]
    if wrong:
        raise UserError(
            "--scheduler pbt: only learning rates drawn from uniform or loguniform can "
            f"change while a trial runs; set {wrong[0]}=VALUE on the command line"
        )
    if search.searcher != "random":
        raise UserError("--scheduler pbt: chooses its own values, use --searcher random")
    if search.final_seeds:
        raise UserError(
            "--final-seeds: under pbt rates change on the way, so that no configuration could "
            f"be trained again; use 0, got {search.final_seeds}"
        )
    if search.num_trials < 2:
        raise UserError(
            f"--num-trials: a population needs at least 2 trials, got {search.num_trials}"
        )
