"""What ranks the trials of a search: a metric of their evaluations, or a function of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft_rl.config import DISTANCES
from sft_rl.config.extensions import blaming_users, is_reference, load_object
from sft_rl.errors import UserError, did_you_mean

SHARES = ("precision", "recall")
"""Metrics of which more is better; what is missing to 1 is minimised."""


@dataclass(frozen=True)
class Objective:
    """A number that is minimised.

    Attributes:
        name: Its name in tables.
        words: Its name on axes.
        needs: The metrics it is made of.
        function: Makes it.
        is_leading: Whether it is the distance that leads the runs, whose floor is known.
    """

    name: str
    words: str
    needs: tuple[str, ...]
    function: Callable[[dict[str, float]], Any]
    is_leading: bool = False

    def of(self, metrics: Mapping[str, Any]) -> float:
        """Return the number for what an evaluation measured.

        Raises:
            UserError: If a function of the user's own fails, or gives no finite number.
        """
        with blaming_users():
            value = self.function({name: float(metrics[name]) for name in self.needs})
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"--metric: {self.name} gave {value!r}; expected a finite number")
        return float(value)

    def error_of(self, metrics: Mapping[str, Any]) -> float:
        """Return the error of the measurement, NaN where none is known."""
        return float(metrics.get(f"{self.needs[0]}_se", math.nan)) if self.is_metric else math.nan

    @property
    def is_metric(self) -> bool:
        """Whether it is one metric, and not a function of several."""
        return len(self.needs) == 1


def load_objective(watched: Sequence[str], leading: str, name: str = "auto") -> Objective:
    """Return what a search minimises.

    Args:
        watched: What evaluations measure.
        leading: The metric of them that leads.
        name: A metric, ``module:function`` of a dictionary of all that evaluations measure, or
            ``auto`` for the metric that leads.

    Raises:
        UserError: If there is no such metric or function.
    """
    measured = tuple(metric for metric in watched if not metric.endswith("_se"))
    if is_reference(name):
        function = load_object("--metric", name)
        if not callable(function):
            raise UserError(f"--metric: {name} is no function")
        return Objective(name, name, measured, function)
    name = leading if name == "auto" else name
    if name not in measured:
        hint = did_you_mean(name, measured)
        raise UserError(f"--metric: {name!r} is not measured by evaluations; {hint}")
    if name in SHARES:
        return Objective(f"1 - {name}", f"1 - {name}", (name,), lambda given: 1.0 - given[name])
    leads = name == leading
    return Objective(name, DISTANCES[name], (name,), lambda given: given[name], leads)
