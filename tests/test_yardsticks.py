"""Precision, recall, the two-sample test and the excess distance, against closed forms."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.other_points import mixture_on_a_curve
from sft_rl.config import Config, MetricsConfig
from sft_rl.data import Dataset, dataset_of, load_dataset
from sft_rl.data.points import draw_points
from sft_rl.metrics import neighbours
from sft_rl.metrics.distances import directions
from sft_rl.metrics.excess import batch_size, excess, excess_squared, sorted_batches
from sft_rl.metrics.neighbours import precision_recall, share_error, two_sample
from sft_rl.metrics.points import Points

SIZE = 512


def roll(num: int, seed: int) -> np.ndarray:
    return draw_points("swiss_roll", num, 0.05, seed).astype(np.float64)


def test_precision_and_recall_on_a_line():
    line = np.arange(20.0)[:, None]
    part = line[:10]
    # The fifth neighbour of 9 in 0..9 is 4, so its neighbourhood reaches up to 14.
    assert precision_recall(line, part) == (1.0, pytest.approx(15 / 20))
    strays = np.concatenate([line, 1000.0 * np.arange(1.0, 6.0)[:, None]])
    precision, recall = precision_recall(line, strays)
    assert (precision, recall) == (pytest.approx(20 / 25), 1.0)


def test_the_two_sample_test_in_closed_form():
    line = np.arange(100.0)[:, None]
    assert two_sample(line, line + 0.4) == (0.0, 0.0)  # every nearest is a copy
    assert two_sample(line, line + 1000.0)[0] == 1.0
    # Real at 0, 1; 10, 11; ... generated at 5, 6; 15, 16; ...: pairs of a kind, each its mate's.
    pairs = np.concatenate([10.0 * np.arange(50), 10.0 * np.arange(50) + 1])[:, None]
    assert two_sample(pairs, pairs + 5.0)[0] == 1.0
    with pytest.raises(ValueError, match="equal numbers, got 100 and 99"):
        two_sample(line, line[1:])


def test_the_errors_are_the_scatter_over_independent_draws():
    generator, rows = np.random.default_rng(0), []
    for seed in range(60):
        real, generated = roll(2000, 2 * seed), roll(2000, 2 * seed + 1)
        generated += generator.normal(0.0, 0.01, generated.shape)
        accuracy, error = two_sample(real, generated)
        precision, _ = precision_recall(real, generated)
        rows.append([accuracy, error, precision, share_error(precision, 2000)])
    scatter = np.std(rows, axis=0, ddof=1)
    mean = np.mean(rows, axis=0)
    assert 0.55 < mean[0] < 0.9  # neither trivial
    assert 0.3 < mean[2] < 0.95
    assert mean[1] == pytest.approx(scatter[0], rel=0.3)
    assert 0.8 < mean[3] / scatter[2] < 1.6  # rather too large than too small


@pytest.mark.parametrize("dim", [1, 3, 8])
def test_trees_and_matrices_agree(dim: int, monkeypatch: pytest.MonkeyPatch):
    generator = np.random.default_rng(dim)
    real, generated = generator.normal(size=(2, 700, dim)) + np.array([0.0, 0.3])[:, None, None]
    generated[:20] = generated[20:40]  # points that are there twice
    tree = (*precision_recall(real, generated), two_sample(real, generated)[0])
    monkeypatch.setattr(neighbours, "MAX_TREE_DIM", 0)
    matrix = (*precision_recall(real, generated), two_sample(real, generated)[0])
    # A pair of twins may name either of three as the nearest of a neighbour; nothing else moves.
    assert matrix == pytest.approx(tree, abs=2e-3)


def test_sharpness_is_seen_where_transport_is_blind():
    real, other = roll(5000, 0), roll(5000, 1)
    blurred = other + np.random.default_rng(2).normal(0.0, 0.01, other.shape)  # 4 sigma
    assert two_sample(real, other)[0] < 0.53
    assert two_sample(real, blurred)[0] > 0.6
    assert precision_recall(real, blurred)[0] < 0.75 < 0.97 < precision_recall(real, other)[0]


def batches(points: np.ndarray, *, num_groups: int = 0) -> np.ndarray:
    return sorted_batches(points, directions(2, 50, 0), size=SIZE, num_groups=num_groups)


def test_the_excess_of_fresh_real_points_is_zero_within_its_error():
    reference = batches(roll(SIZE * 512, 100), num_groups=16)
    found = np.array([excess_squared(reference, batches(roll(SIZE * 40, s))) for s in range(12)])
    assert np.abs(found[:, 0] / found[:, 1]).max() < 3.5
    assert np.mean(found[:, 1]) == pytest.approx(np.std(found[:, 0], ddof=1), rel=0.7)
    # Without the correction there is a floor many times as high.
    plain = np.mean((batches(roll(SIZE * 40, 0)).mean(axis=0) - reference.mean(axis=0)) ** 2)
    assert plain > 2 * np.abs(found[:, 0].mean())


def test_the_error_holds_the_noise_of_a_small_reference():
    generated = batches(roll(SIZE * 200, 0))
    found = np.array([excess_squared(batches(roll(SIZE * 8, s)), generated) for s in range(1, 16)])
    # The jackknife of a square is too large at zero, never much too small.
    assert 0.7 < np.mean(found[:, 1]) / np.std(found[:, 0], ddof=1) < 2.5
    assert abs(found[:, 0].mean()) < 3 * np.std(found[:, 0], ddof=1) / np.sqrt(len(found))


def test_the_excess_of_moved_points_is_how_far_they_are_moved():
    moved_by = np.array([0.03, -0.04])
    expected = np.sqrt(np.mean((moved_by @ directions(2, 50, 0)) ** 2))
    distance, error = excess(batches(roll(SIZE * 60, 0)), batches(roll(SIZE * 60, 1) + moved_by))
    assert error < 0.1 * expected
    assert abs(distance - expected) < 3 * error
    same = batches(roll(SIZE * 60, 0))
    exactly = excess_squared(same, batches(roll(SIZE * 60, 0) + moved_by))[0]
    noise = 2 * np.mean((same - same.mean(axis=0)) ** 2) / (len(same) - 1)  # taken off twice
    assert exactly == pytest.approx(expected**2 - noise, rel=1e-3)


def test_the_root_keeps_the_sign_and_an_error_at_zero():
    real = np.array([[0.0], [2.0], [4.0], [2.0]])
    distance, error = excess(real, real)
    assert distance < 0.0 < error


def test_batches_fit_what_there_is():
    assert batch_size(10_000, 65_536) == 1024
    assert batch_size(10_000, 65_536, 400) == 50
    assert batch_size(7, 100) == 0


@pytest.fixture(scope="module")
def line() -> Dataset:
    generator = np.random.default_rng(0)
    along = generator.uniform(size=(3000, 1))
    points = np.concatenate([along, along**2, np.sin(3 * along)], axis=1)
    return dataset_of(points + generator.normal(0.0, 0.01, points.shape), Config().data)


def test_a_users_points_are_measured_against_those_held_out(line: Dataset):
    points = Points("two_sample", MetricsConfig(num_samples=500, num_exact=100), line)
    fresh = line.train_in_units(2400)
    found = points.measured(line.real(300, 0, 0), fresh).numbers
    assert abs(found["excess"]) < 3 * found["excess_se"]
    assert abs(found["two_sample"] - 0.5) < 3 * found["two_sample_se"]
    worse = points.measured(line.real(300, 0, 0), fresh + 0.1).numbers
    assert worse["excess"] > 0.05 > 3 * worse["excess_se"]
    assert worse["two_sample"] > 0.7
    assert worse["precision"] < 0.5
    assert "two_sample_sd" not in points.noise_floors([line.real(300, 0, d) for d in (0, 1)])


def test_too_few_points_have_no_excess():
    few = dataset_of(np.random.default_rng(0).normal(size=(20, 2)), Config().data)
    points = Points("two_sample", MetricsConfig(), few)
    assert "excess" not in points.measured(few.held_out, few.train_in_units(4)).numbers


def test_the_reference_of_a_synthetic_source_is_drawn_once(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SFT_RL_CACHE", str(tmp_path))
    config, data = MetricsConfig(num_excess=2000, num_samples=800), load_dataset(Config().data)
    first = Points("two_sample", config, data).excess(roll(2000, 5))
    (kept,) = (tmp_path / "quantiles").glob("[!.]*")  # beside their locks
    written = kept.stat().st_mtime_ns
    assert Points("two_sample", config, data).excess(roll(2000, 5)) == first
    assert kept.stat().st_mtime_ns == written
    other = MetricsConfig(num_excess=2000, num_samples=800, num_projections=30)
    Points("two_sample", other, data).excess(roll(2000, 5))
    assert len(list((tmp_path / "quantiles").glob("[!.]*"))) == 2


def test_the_mixture_on_a_curve_has_the_clusters_that_it_says():
    points = mixture_on_a_curve(60_000, seed=3)
    assert points.shape == (60_000, 8)
    assert np.array_equal(points, mixture_on_a_curve(60_000, seed=3))
    turns = np.arctan2(points[:, 1], points[:, 0]) / (2.0 * np.pi / 12.0)
    cluster = np.round(turns).astype(int) % 12
    shares = np.bincount(cluster, minlength=12) / len(points)
    weights = np.linspace(1.0, 3.0, 12)
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.006)
    for number in range(12):
        spread = points[cluster == number].std(axis=0)
        np.testing.assert_allclose(spread, 0.02, rtol=0.1)
