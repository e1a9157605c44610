"""From which values one key of a search space is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from sft_rl.errors import UserError, did_you_mean

Values = dict[str, Any]
"""Values of searched keys."""

Kind = Literal["choice", "uniform", "loguniform", "randint", "lograndint", "grid"]
KINDS: tuple[str, ...] = get_args(Kind)
LISTED, WHOLE, LOG = ("choice", "grid"), ("randint", "lograndint"), ("loguniform", "lograndint")
BESIDE = ("step", "when")
"""What a distribution may say beside its kind."""


@dataclass(frozen=True)
class Distribution:
    """Where the values of one key come from.

    Attributes:
        kind: ``grid`` and ``choice`` take one of `values`; the others lie between two, both
            included: real numbers in ``uniform`` and ``loguniform``, whole ones in ``randint``
            and ``lograndint``.
        values: The options, or the lower and the upper bound.
        step: Values are the lower bound and whole multiples of it more.
        when: The key is searched only where each of these keys has one of the values named.
    """

    kind: Kind
    values: tuple[Any, ...]
    step: float | None = None
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def num_values(self) -> float:
        """How many values there are; infinite where they are real numbers between two bounds."""
        if self.kind in LISTED:
            return len(self.values)
        step = self.step or (1 if self.kind in WHOLE else None)
        low, high = self.values
        return math.inf if step is None else _num_steps(low, high, step) + 1

    @property
    def options(self) -> list[Any]:
        """All values, where there are so many."""
        if self.kind in LISTED:
            return list(self.values)
        low, step = self.values[0], self.step or 1
        return [self.rounded(low + i * step) for i in range(int(self.num_values))]

    def holds_under(self, values: Values) -> bool:
        """Whether the key is searched beside these values."""
        return all(values.get(key) in options for key, options in self.when.items())

    def contains(self, value: Any) -> bool:
        """Whether a value is one of the options or lies within the bounds."""
        if self.kind in LISTED:
            return value in self.values
        low, high = self.values
        return (
            isinstance(value, int | float)
            and low <= value <= high
            and (self.step is None or math.isclose(self.rounded(value), value))
        )

    def rounded(self, value: Any) -> Any:
        """The nearest value that a step allows."""
        if self.step is None or self.kind in LISTED:
            return value
        low, high = self.values
        count = min(round((value - low) / self.step), _num_steps(low, high, self.step))
        at = low + count * self.step
        return at if self.kind in WHOLE else float(f"{at:.12g}")  # 0.3, not 0.30000000000000004

    def sample(self, rng: np.random.Generator) -> Any:
        """Draw one value; plain Python numbers."""
        if self.kind in LISTED:
            return self.values[int(rng.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "randint":
            return self.rounded(int(rng.integers(low, high, endpoint=True)))
        if self.kind == "uniform":
            return self.rounded(float(rng.uniform(low, high)))
        # A whole number has the part of the log axis that is nearest to it.
        half = 0.5 if self.kind == "lograndint" else 0.0
        drawn = math.exp(rng.uniform(math.log(low - half), math.log(high + half)))
        value = float(np.clip(drawn, low, high))
        return self.rounded(round(value) if half else value)


def _num_steps(low: float, high: float, step: float) -> int:
    """How many whole steps lie between two bounds."""
    return math.floor((high - low) / step + 1e-9)


def parse_distribution(where: str, given: Any) -> Distribution:
    """Check one ``{kind: [...]}``; `where` begins the error's line."""
    kinds = [key for key in given if key not in BESIDE] if isinstance(given, dict) else []
    if len(kinds) != 1:
        raise UserError(f"{where}: expected one of {{{', '.join(KINDS)}}}: [...], got {given!r}")
    kind, values = kinds[0], given[kinds[0]]
    if kind not in KINDS:
        hint = did_you_mean(str(kind), KINDS)
        raise UserError(f"{where}: distribution {kind!r} is unknown; {hint}")
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: {kind} needs a list with at least one value, got {values!r}")
    when = given.get("when", {})
    if not isinstance(when, dict):
        raise UserError(f"{where}: 'when' must be a mapping from keys to values, got {when!r}")
    found = {key: tuple(v) if isinstance(v, list) else (v,) for key, v in when.items()}
    if kind not in LISTED:
        bounds = _bounds(where, kind, values)
        return Distribution(kind, bounds, _step(where, kind, bounds, given.get("step")), found)
    if any(value in values[:i] for i, value in enumerate(values)):
        raise UserError(f"{where}: {kind} lists a value twice: {values}")
    if "step" in given:
        raise UserError(f"{where}: 'step' goes between two bounds, not with {kind}")
    return Distribution(kind, tuple(values), when=found)


def _bounds(where: str, kind: str, values: list[Any]) -> tuple[Any, ...]:
    bounds = values
    whole = kind in WHOLE
    wanted = "whole numbers" if whole else "numbers"
    if len(bounds) != 2 or not all(_is_number(bound, whole) for bound in bounds):
        raise UserError(f"{where}: {kind} needs two {wanted} [low, high], got {values!r}")
    low, high = bounds
    if low >= high:
        raise UserError(
            f"{where}: {kind} bounds are equal or the wrong way round, got [{low}, {high}]"
        )
    if kind in LOG and low <= 0:
        raise UserError(f"{where}: {kind} needs bounds above 0, got [{low}, {high}]")
    return (low, high) if whole else (float(low), float(high))


def _step(where: str, kind: str, bounds: tuple[Any, ...], step: Any) -> float | None:
    if step is None:
        return None
    low, high = bounds
    whole = kind in WHOLE
    if not _is_number(step, whole) or not 0 < step <= high - low:
        wanted = "a whole number" if whole else "a number"
        raise UserError(
            f"{where}: 'step' must be {wanted} above 0 and at most {high - low:g}, the distance "
            f"between the bounds, got {step!r}"
        )
    return step if whole else float(step)


def _is_number(value: Any, whole: bool) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (
        not whole and isinstance(value, float) and math.isfinite(value)
    )
