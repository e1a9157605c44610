"""How much each searched key matters: partial dependence with its uncertainty.

A Gaussian process is fitted to what the search has tried: the distance over all searched keys and
the number of steps. The partial dependence on a key is the process's mean over the tried values of
all others, g(v) = 1/n sum_i f(v, others_i); it is linear in f, so its errors, and those of a
difference of two values, follow from the posterior covariance in closed form (Moosbauer et al.,
NeurIPS 2021).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from tuning.distribution import LISTED, LOG, WHOLE, Distribution, Values
from tuning.ranking import WIDTH, Configuration, best_by_steps
from tuning.search import STEPS, Search

NUM_POINTS = 15
"""Values of a key between two bounds for which its effect is computed."""
NUM_OTHERS = 40
"""Tried configurations, at most, over which the other keys are averaged."""
NUM_SHUFFLES = 19
"""As many as an error of 5 % takes."""
LEAST = 4
"""Finished configurations for each searched key below which nothing is said."""


@dataclass(frozen=True)
class Effect:
    """What one key does at one number of steps, the other keys averaged over what was tried.

    Attributes:
        key: The key.
        num_steps: Denoising steps.
        values: Values of the key.
        means: Expected distance at each.
        low: Lower end of its interval of two standard errors.
        high: Upper end.
        as_good: Whether each is not told from the best by two standard errors of the difference.
        log: Whether the values lie evenly on a log axis.
    """

    key: str
    num_steps: int
    values: list[Any]
    means: np.ndarray
    low: np.ndarray
    high: np.ndarray
    as_good: list[bool]
    log: bool

    @property
    def are_numbers(self) -> bool:
        """Whether the values can be drawn on an axis."""
        return _are_numbers(self.values)

    @property
    def best(self) -> Any:
        """The value with the least expected distance."""
        return self.values[int(np.argmin(self.means))]

    @property
    def good(self) -> list[Any]:
        """The values that are as good as the best: side by side with it where they are numbers."""
        if not self.are_numbers:
            return [v for v, is_good in zip(self.values, self.as_good, strict=True) if is_good]
        first = last = int(np.argmin(self.means))
        while first > 0 and self.as_good[first - 1]:
            first -= 1
        while last < len(self.values) - 1 and self.as_good[last + 1]:
            last += 1
        return self.values[first : last + 1]

    @property
    def is_seen(self) -> bool:
        """Whether some value is told from the best."""
        return not all(self.as_good)

    @property
    def size(self) -> float:
        """Expected distance of the worst value less that of the best."""
        return float(np.ptp(self.means))


@dataclass(frozen=True)
class Sensitivity:
    """The effects of all keys at all numbers of steps.

    Attributes:
        effects: By number of steps and key.
        explained: Share of the variance among configurations with the same number of steps that
            the process predicts of each from the others, in logarithms where all are positive.
        by_chance: The most that it predicts in 19 searches whose distances are dealt out anew.
    """

    effects: tuple[Effect, ...]
    explained: float
    by_chance: float

    @property
    def is_known(self) -> bool:
        """Whether more is predicted than by chance, at 5 %."""
        return self.explained > max(self.by_chance, 0.0)

    def at(self, num_steps: int) -> list[Effect]:
        """The effects at a number of steps, the largest first."""
        found = [effect for effect in self.effects if effect.num_steps == num_steps]
        return sorted(found, key=lambda effect: -effect.size)


def sensitivity(search: Search, tried: Sequence[Configuration]) -> Sensitivity | None:
    """Fit the process to the finished configurations; none where they are too few.

    Under ``pbt`` a configuration's values change on the way, so there is none either.
    """
    done = [one for one in tried if one.state == "done"]
    space = search.space.distributions
    keys = [key for key, d in space.items() if d.num_values > 1]
    searched = [key for key in keys if key != STEPS]
    if search.scheduler == "pbt" or not searched or len(done) < LEAST * len(keys):
        return None
    distances = np.array([one.validation.mean for one in done])
    to, back = (np.log, np.exp) if distances.min() > 0 else (np.asarray, np.asarray)
    if not np.isfinite(distances).all() or np.ptp(distances) == 0:
        return None
    features = [_Feature(key, space[key]) for key in keys]
    rows = [one.values for one in done]
    process = _Process(_encode(features, rows), to(distances))
    effects = [
        _effect(process, features, key, space[key], steps, rows, back)
        for steps in best_by_steps(done)
        for key in searched
        if any(key in row for row in rows)
    ]
    steps = np.array([one.num_steps for one in done])
    return Sensitivity(tuple(effects), _explained(process, steps), _by_chance(process, steps))


def _explained(process: _Process, steps: np.ndarray) -> float:
    """Compare what the process misses with what the others' mean misses, steps by steps."""
    missed = np.zeros(len(steps))
    for of_it in _groups(steps):
        y = process.y[of_it]
        alone = len(y) == 1
        missed[of_it] = y - process.mean if alone else (y - y.mean()) * len(y) / (len(y) - 1)
    return float(1.0 - np.mean(process.left_out**2) / np.mean(missed**2))


def _by_chance(process: _Process, steps: np.ndarray) -> float:
    """The most that is explained of distances that are dealt out anew, steps by steps."""
    rng, best = np.random.default_rng(0), -math.inf
    for _ in range(NUM_SHUFFLES):
        y = process.y.copy()
        for of_it in _groups(steps):
            y[of_it] = rng.permutation(y[of_it])
        best = max(best, _explained(_Process(process.x, y), steps))
    return best


def _groups(steps: np.ndarray) -> list[np.ndarray]:
    return [np.flatnonzero(steps == number) for number in np.unique(steps)]


class _Feature:
    """Places a key's values on axes from 0 to 1: one of numbers, one for each word.

    Args:
        key: The key.
        distribution: Its values.
    """

    def __init__(self, key: str, distribution: Distribution) -> None:
        self.key = key
        self.values = distribution.values
        self.is_number, self.log = _are_numbers(self.values), False
        if self.is_number:
            ends: tuple[float, float] = min(self.values), max(self.values)
            spread = distribution.kind in LISTED and 0 < 8 * ends[0] <= ends[1]
            self.log = distribution.kind in LOG or spread or key == STEPS
            self.low, self.high = map(math.log, ends) if self.log else ends

    def encode(self, row: Values) -> list[float]:
        """Place the value of a configuration; in the middle if it has none."""
        value = row.get(self.key)
        if not self.is_number:
            return [float(value == option) for option in self.values]
        if value is None:
            return [0.5]
        at = math.log(value) if self.log else value
        return [(at - self.low) / (self.high - self.low)]

    def points(self, distribution: Distribution) -> list[float]:
        """Values from the lower to the upper bound, evenly on the axis as far as there are such."""
        places = np.linspace(self.low, self.high, NUM_POINTS).tolist()
        values = [float(f"{math.exp(place) if self.log else place:.4g}") for place in places]
        if distribution.kind in WHOLE:
            values = [round(value) for value in values]
        return list(dict.fromkeys(map(distribution.rounded, values)))


def _encode(features: Iterable[_Feature], rows: Iterable[Values]) -> np.ndarray:
    return np.array([[x for f in features for x in f.encode(row)] for row in rows])


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


class _Process:
    """A Gaussian process with a length for each axis, and a noise that is fitted, too.

    Args:
        x: What was tried (n, axes).
        y: What came of it (n,).

    Attributes:
        left_out: What it misses of each when it is predicted from the others (n,).
        noise: Variance of what the function does not explain, of that of `y`.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y, self.mean, self.scale = x, y, y.mean(), y.std()
        signal = ConstantKernel(1.0, (0.05, 20.0)) * Matern(
            np.full(x.shape[1], 1.0), (0.3, 30.0), nu=2.5
        )
        noise = WhiteKernel(0.1, (1e-3, 2.0))
        fitted = GaussianProcessRegressor(signal + noise, random_state=0)
        target = (y - self.mean) / self.scale
        with warnings.catch_warnings():  # a key without effect drives its length to the bound
            warnings.simplefilter("ignore")
            fitted.fit(x, target)
        self._signal, self.noise = fitted.kernel_.k1, float(fitted.kernel_.k2.noise_level)
        self._lower, self._weights = fitted.L_, fitted.alpha_
        inverse = cho_solve((self._lower, True), np.eye(len(x)))
        self.left_out = self.scale * self._weights / np.diag(inverse)

    def averages(self, groups: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Means of the function over groups of points, (g,), and their covariance, (g, g)."""
        points = np.concatenate(groups)
        average = np.zeros((len(groups), len(points)))
        start = 0
        for i, group in enumerate(groups):
            average[i, start : start + len(group)] = 1.0 / len(group)
            start += len(group)
        cross = average @ self._signal(points, self.x)
        reduced = solve_triangular(self._lower, cross.T, lower=True)
        covariance = average @ self._signal(points) @ average.T - reduced.T @ reduced
        return (
            self.mean + self.scale * (cross @ self._weights),
            self.scale**2 * covariance,
        )


def _effect(
    process: _Process,
    features: Sequence[_Feature],
    key: str,
    distribution: Distribution,
    num_steps: int,
    rows: Sequence[Values],
    back: Callable[[np.ndarray], np.ndarray],
) -> Effect:
    """Average over the tried configurations that have the key, at one number of steps."""
    own = next(feature for feature in features if feature.key == key)
    is_real = distribution.kind not in LISTED and distribution.num_values > NUM_POINTS
    values = own.points(distribution) if is_real else distribution.options
    having = [row for row in rows if key in row]
    others = having[:: math.ceil(len(having) / NUM_OTHERS)]
    groups = [
        _encode(features, [{**row, STEPS: num_steps, key: value} for row in others])
        for value in values
    ]
    means, covariance = process.averages(groups)
    variances = np.clip(np.diag(covariance), 0.0, None)
    best = int(np.argmin(means))
    apart = np.clip(variances + variances[best] - 2.0 * covariance[best], 0.0, None)
    return Effect(
        key=key,
        num_steps=num_steps,
        values=list(values),
        means=back(means),
        low=back(means - WIDTH * np.sqrt(variances)),
        high=back(means + WIDTH * np.sqrt(variances)),
        as_good=list(map(bool, means - means[best] <= WIDTH * np.sqrt(apart) + 1e-12)),
        log=own.log,
    )
