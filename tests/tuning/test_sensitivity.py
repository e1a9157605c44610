"""How much each key matters, on searches whose answer is known."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from made_up import RATE, make

from tuning.advice import advice
from tuning.distribution import Values
from tuning.ranking import Configuration, Estimate
from tuning.search import STEPS, Search
from tuning.sensitivity import _Process, sensitivity

CRITIC, KIND = "critic.learning_rate", "critic.regulariser"
SPACE = {
    STEPS: {"grid": [2, 8]},
    RATE: {"loguniform": [1e-5, 1e-2]},
    CRITIC: {"loguniform": [1e-4, 1e-2]},
}


def tried(
    space: dict[str, Any], distance: Callable[[Values], float], num: int, *, noise: float = 0.05
) -> tuple[Search, list[Configuration]]:
    """Configurations whose distance is known but for a noise on its logarithm."""
    search, rng = make(space, num_trials=num), np.random.default_rng(0)
    found = []
    for number in range(num):
        values = search.planned(number)
        mean = distance(values) * float(np.exp(noise * rng.standard_normal()))
        steps = values.get(STEPS, 10)
        error = Estimate(mean, noise * mean)
        found.append(Configuration(number, values, steps, number < 1, (), "done", error))
    return search, found


def valley(values: Values) -> float:
    """Best at a rate of 3e-4 with 2 steps, of 3e-3 with 8; the critic's does nothing."""
    apart = np.log10(values[RATE] / 3e-4) - (values[STEPS] == 8)
    return 0.04 / values[STEPS] ** 0.5 * float(np.exp(0.6 * apart**2))


def test_what_matters_is_found_with_its_best_value_at_each_number_of_steps():
    search, found = tried(SPACE, valley, 24)
    result = sensitivity(search, found)
    assert result is not None
    assert result.is_known
    assert result.explained > 0.8
    for steps, best in ((2, 3e-4), (8, 3e-3)):
        rate, critic = result.at(steps)
        assert (rate.key, rate.is_seen, critic.key, critic.is_seen) == (RATE, True, CRITIC, False)
        assert best / 3 < rate.best < best * 3
        assert rate.good[0] <= rate.best <= rate.good[-1]
        true = [valley({STEPS: steps, RATE: value}) for value in rate.values]
        inside = (rate.low < true) & (true < rate.high)
        assert inside.mean() > 0.6
    text = advice(search, found, [], result)
    best = min((one for one in found if one.num_steps == 2), key=lambda one: one.validation.mean)
    assert f"- **2 steps**: {best.validation} on validation data; take {RATE}" in text
    assert f"no effect of {CRITIC} is seen" in text
    assert "Nothing with fewer steps is as good as 8" in text


def test_of_noise_no_advice_is_made():
    search, found = tried(SPACE, lambda values: 0.1, 16, noise=0.2)
    result = sensitivity(search, found)
    assert result is not None
    assert not result.is_known
    text = advice(search, found, [], result)
    assert "take" not in text
    assert "16 configurations do not show which values matter" in text


def test_words_and_keys_of_one_choice_have_effects_too():
    worst = {"gradient_penalty": 1.0, "r1": 2.0, "none": 2.0}
    space = {
        KIND: {"choice": list(worst)},
        RATE: {"loguniform": [1e-4, 1e-3]},
        "critic.penalty_weight": {"randint": [1, 5], "when": {KIND: ["gradient_penalty", "r1"]}},
    }
    search, found = tried(space, lambda values: 0.01 * worst[values[KIND]], 24, noise=0.02)
    result = sensitivity(search, found)
    assert result is not None
    first, *others = result.at(10)
    assert (first.key, first.good) == (KIND, ["gradient_penalty"])
    assert {effect.key for effect in others} == {RATE, "critic.penalty_weight"}
    assert next(e.values for e in others if e.key != RATE) == [1, 2, 3, 4, 5]
    text = advice(search, found, [], result)
    assert f"take {KIND} gradient_penalty; no effect of" in text


def test_effects_are_at_values_that_can_be_taken():
    space = {
        "training.n_critic": {"lograndint": [1, 50]},
        "value.width": {"randint": [16, 512], "step": 16},
    }
    search, found = tried(space, lambda values: 0.1 / values["training.n_critic"], 8)
    result = sensitivity(search, found)
    assert result is not None
    for effect in result.effects:
        d = search.space.distributions[effect.key]
        assert all(type(value) is int and d.contains(value) for value in effect.values)
        assert 10 <= len(effect.values) == len(set(effect.values)) <= 15


def test_too_few_configurations_say_nothing():
    search, found = tried(SPACE, valley, 11)
    assert sensitivity(search, found) is None
    said = "11 finished configurations are too few to say which values matter; that takes 4 for"
    assert said in advice(search, found, [], None)
    assert advice(search, [], [], None) == ""


def test_the_process_misses_of_each_what_a_fit_without_it_misses():
    from sklearn.gaussian_process import GaussianProcessRegressor  # here: slow to import
    from sklearn.gaussian_process.kernels import WhiteKernel

    rng = np.random.default_rng(1)
    x = rng.random((12, 2))
    y = np.sin(4 * x[:, 0]) + 0.1 * rng.standard_normal(12)
    process = _Process(x, y)
    kernel = process._signal + WhiteKernel(process.noise)
    for i in range(12):
        others = np.arange(12) != i
        alone = GaussianProcessRegressor(kernel, optimizer=None)
        alone.fit(x[others], y[others] - y.mean())
        missed = y[i] - y.mean() - alone.predict(x[i : i + 1])[0]
        assert process.left_out[i] == pytest.approx(missed, abs=1e-8)
    means, covariance = process.averages([x[:3], x[3:4]])
    both = GaussianProcessRegressor(kernel, optimizer=None).fit(x, (y - y.mean()) / y.std())
    assert means == pytest.approx(
        [y.mean() + y.std() * both.predict(group).mean() for group in (x[:3], x[3:4])]
    )
    _, full = both.predict(x[:3], return_cov=True)
    signal = full - process.noise * np.eye(3)
    assert covariance[0, 0] == pytest.approx(y.var() * signal.mean(), abs=1e-8)
