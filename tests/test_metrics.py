"""Distances in closed form."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from sft_rl.config import ResolvedConfig
from sft_rl.data import load_dataset
from sft_rl.metrics.distances import (
    earth_movers,
    mmd,
    noise_floor,
    sliced_wasserstein,
)
from sft_rl.metrics.evaluation import AT_ONCE, Evaluator
from sft_rl.policy import chunk_of
from sft_rl.runs.parts import network_of, policy_of
from sft_rl.seeding import generator

POINTS = np.random.default_rng(0).normal(size=(500, 2))


def test_translated_points_are_as_far_as_the_translation():
    moved = POINTS + np.array([3.0, 4.0])
    assert earth_movers(POINTS, moved) == pytest.approx(5.0, rel=1e-6)
    # In d dimensions a random direction sees 1 / sqrt(d) of it, in the mean square.
    sliced = sliced_wasserstein(POINTS, moved, num_projections=5000, seed=0)
    assert sliced == pytest.approx(5.0 / np.sqrt(2.0), rel=0.02)


def test_the_same_points_in_another_order_are_at_zero():
    shuffled = np.random.default_rng(1).permutation(POINTS)
    # Distances of a point to itself are square roots of rounding errors.
    assert earth_movers(POINTS, shuffled) == pytest.approx(0.0, abs=1e-7)
    distance = sliced_wasserstein(POINTS, shuffled, num_projections=50, seed=0)
    assert distance == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_sliced_and_the_exact_distance_are_pots_numbers(dim: int):
    import ot  # here: slow to import

    real, generated = np.random.default_rng(dim).normal(size=(2, 300, dim)).astype(np.float32)
    wide = real.astype(float), generated.astype(float)
    expected = ot.sliced_wasserstein_distance(*wide, n_projections=40, p=2, seed=3)
    found = sliced_wasserstein(real, generated, num_projections=40, seed=3)
    assert found == pytest.approx(expected, rel=1e-9)
    exact = ot.emd2([], [], ot.dist(*wide, metric="euclidean"))
    assert earth_movers(*wide) == pytest.approx(exact, rel=1e-9)
    assert earth_movers(wide[0][:200], wide[1]) == earth_movers(wide[0][:200], wide[1][:200])


def test_mmd_is_unbiased_around_zero_and_grows_with_the_distance():
    generator = np.random.default_rng(2)
    same = [mmd(*generator.normal(size=(2, 200, 2))) for _ in range(40)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(40)
    far = mmd(POINTS, POINTS + 0.5)
    assert far > 5 * np.std(same)
    assert mmd(POINTS, POINTS + 1.0) > far


def test_the_noise_floor_is_the_mean_distance_of_real_to_real():
    draws = [np.full((3, 1), value) for value in (0.0, 1.0, 3.0)]
    assert noise_floor(earth_movers, draws) == pytest.approx(2.0)


def test_samples_are_those_of_one_go_however_many_are_held_at_once(
    tiny_config: Callable[..., ResolvedConfig],
):
    num = AT_ONCE + 1234
    config = tiny_config(f"metrics.num_samples={num}", "metrics.num_excess=10")
    data = load_dataset(config.data)
    policy, evaluator = policy_of(config, network_of(config)), Evaluator(data, config.metrics)
    told: list[tuple[int, int]] = []
    samples = evaluator.samples(policy, progress=lambda done, total, _: told.append((done, total)))
    source = generator(config.metrics.seed, "evaluation", device=policy.device)
    np.testing.assert_array_equal(samples, data.units.to_data(policy.sample(num, source)))
    total = policy.num_steps * math.ceil(num / chunk_of(policy.shape))
    assert told == [(done, total) for done in range(1, total + 1)]
