"""What happens to trials on the way: early stopping, and population-based training."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining

from sft_rl.seeding import derive_seed
from tuning.distribution import Distribution
from tuning.records import Records
from tuning.search import DISTANCE, STEPS, Search


class ASHAByStepCount(FIFOScheduler):
    """Asynchronous successive halving among trials of the same number of steps.

    More steps are always better, so one race for all would stop every short sampler. Each step
    count has its own ``AsyncHyperBandScheduler``; progress is the percentage of a trial's own
    iterations, of which presets give short samplers more.

    Args:
        search: The search.
        records: Trials of earlier sessions, whose results count.
    """

    def __init__(self, search: Search, records: Records) -> None:
        super().__init__()
        self._search = search
        self._constants = search.space.asha
        self._races: dict[int, AsyncHyperBandScheduler] = {}
        for record in records.all():
            if record.state in ("done", "stopped"):
                self._replay(record.values, record.index, record.curve)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Enter a trial into its race."""
        self._race(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Decide whether a trial goes on; one that has no iterations left does."""
        decision = self._race(trial).on_trial_result(tune_controller, trial, result)
        over = result.get("percent", 0.0) >= 100.0
        return str(FIFOScheduler.CONTINUE if over else decision)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Count a trial's last result."""
        self._race(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Take a trial out of its race."""
        self._race(trial).on_trial_remove(tune_controller, trial)

    def debug_string(self) -> str:
        """Describe the races."""
        return "\n".join(f"{t} steps: {race.debug_string()}" for t, race in self._races.items())

    def _race(self, trial: Trial) -> AsyncHyperBandScheduler:
        return self._race_of(self._search.value(trial.config["trial"]["values"], STEPS))

    def _race_of(self, num_steps: int) -> AsyncHyperBandScheduler:
        if num_steps not in self._races:
            self._races[num_steps] = AsyncHyperBandScheduler(
                time_attr="percent",
                metric=DISTANCE,
                mode="min",
                grace_period=self._constants.grace_percent,
                max_t=100.0,
                reduction_factor=self._constants.reduction_factor,
                brackets=self._constants.brackets,
                stop_last_trials=False,
            )
        return self._races[num_steps]

    def _replay(
        self, values: dict[str, Any], index: int, curve: tuple[tuple[int, float], ...]
    ) -> None:
        """Run a finished trial through its race again."""
        config = self._search.config(values)
        race, total = self._race_of(config.sampler.num_steps), config.training.num_iterations
        stub = Trial("finished", config={"trial": {"index": index, "values": values}}, stub=True)
        race.on_trial_add(None, stub)
        for iteration, distance in curve:
            row = {"percent": 100.0 * iteration / total, DISTANCE: distance}
            race.on_trial_result(None, stub, row)


class Population(PopulationBasedTraining):
    """Population-based training of the searched learning rates.

    The worst quarter takes over weights, optimisers and rates of the best quarter from our
    checkpoints, and changes the rates within the bounds of the space.

    Args:
        search: The search; its space holds learning rates only.
        total: Iterations of a trial.
        every: Iterations between two evaluations.
    """

    def __init__(self, search: Search, *, total: int, every: int) -> None:
        constants = search.space.pbt
        seed = derive_seed(search.seed, "population")
        random.seed(seed)  # Ray draws from these two, in the driver
        np.random.seed(seed % 2**32)
        self._bounds = {key: d.values for key, d in search.space.distributions.items()}
        domains = {key: _domain(d) for key, d in search.space.distributions.items()}
        super().__init__(
            time_attr="iteration",
            metric=DISTANCE,
            mode="min",
            perturbation_interval=max(every, total // constants.num_generations),
            quantile_fraction=constants.quantile_fraction,
            resample_probability=constants.resample_probability,
            hyperparam_mutations={"trial": {"values": domains}},
            require_attrs=False,  # a refused trial reports its reason only
        )

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Decide what a trial does next; at its end it is left alone."""
        if result.get("percent", 0.0) >= 100.0:
            return str(FIFOScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))

    def _get_new_config(
        self, trial: Trial, trial_to_clone: Trial
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Take over changed rates but not the other trial's number, which names its folder."""
        config, operations = super()._get_new_config(trial, trial_to_clone)
        values = {
            key: float(np.clip(value, *self._bounds[key]))
            for key, value in config["trial"]["values"].items()
        }
        return {"trial": {**trial.config["trial"], "values": values}}, operations


def _domain(distribution: Distribution) -> Any:
    low, high = distribution.values
    return (tune.loguniform if distribution.kind == "loguniform" else tune.uniform)(low, high)
