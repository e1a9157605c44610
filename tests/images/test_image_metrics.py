"""Distances of features in closed form; and of digits, what must be far is far."""

import sys
from pathlib import Path

import numpy as np
import pytest

from sft_rl.config import Config, MetricsConfig
from sft_rl.config.files import load_config
from sft_rl.data import load_dataset
from sft_rl.errors import UserError
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.metrics.frechet import (
    frechet_distance,
    kernel_distance,
    nearest_distances,
)

FEATURES = np.random.default_rng(0).normal(size=(300, 5)) * [1.0, 2.0, 3.0, 0.5, 0.1]


def test_frechet_of_a_translation_is_its_squared_length():
    moved = FEATURES + np.array([3.0, 4.0, 0.0, 0.0, 0.0])
    assert frechet_distance(FEATURES, moved) == pytest.approx(25.0)
    assert frechet_distance(FEATURES, FEATURES) == pytest.approx(0.0, abs=1e-6)


def test_frechet_of_a_scaling_is_in_the_trace():
    scaled = FEATURES.mean(0) + 3.0 * (FEATURES - FEATURES.mean(0))
    trace = np.trace(np.cov(FEATURES, rowvar=False))
    assert frechet_distance(FEATURES, scaled) == pytest.approx(4.0 * trace)


def test_frechet_of_a_rotation_agrees_with_the_matrix_root():
    from scipy.linalg import sqrtm

    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0]
    turned = FEATURES @ rotation
    one, two = (np.cov(x, rowvar=False) for x in (FEATURES, turned))
    shift = np.square(FEATURES.mean(0) - turned.mean(0)).sum()
    expected = shift + np.trace(one + two - 2.0 * sqrtm(one @ two).real)
    assert frechet_distance(FEATURES, turned) == pytest.approx(expected, rel=1e-5)


def test_kernel_distance_by_hand():
    x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [3.0]])
    # k(1,2) = 27, k(0,3) = 1, cross: 1, 64, 1, 343
    assert kernel_distance(x, y) == pytest.approx(27.0 + 1.0 - 2.0 * (1 + 64 + 1 + 343) / 4)


def test_nearest_distances():
    images = np.array([[[0, 0]], [[3, 4]]], np.uint8)
    others = np.array([[[0, 0]], [[6, 8]]], np.uint8)
    assert nearest_distances(images, others).tolist() == pytest.approx([0.0, 5.0], abs=1e-3)


@pytest.fixture(scope="module")
def evaluator(_own_machine_room: None) -> Evaluator:
    config = load_config("digits", ["metrics.num_samples=500"])
    return Evaluator(load_dataset(config.data), config.metrics)


def test_the_classifier_knows_digits_and_stays_in_the_cache(evaluator: Evaluator):
    protocol = evaluator.protocol
    assert protocol["classifier_accuracy"] > 0.95
    again = Evaluator(evaluator.data, MetricsConfig(num_samples=500))
    assert again.protocol == protocol
    train = evaluator.data.train_in_units(500)
    assert again.distance(train) == evaluator.distance(train)


def test_real_digits_are_near_and_wrong_ones_far(evaluator: Evaluator):
    train = evaluator.data.train_in_units(500)
    floor = evaluator.noise_floors()
    assert floor["frechet"] == evaluator.distance(train)
    ones = train[evaluator.data.labels[:500].numpy() == 1]
    for wrong in (np.flip(train, 2).copy(), np.repeat(ones, 5, axis=0), np.zeros_like(train)):
        distances = evaluator.all_distances(wrong)
        assert distances["frechet"] > 5 * floor["frechet"]
        assert distances["kernel"] > floor["kernel"] + 0.1


def test_copies_are_found_and_new_images_are_not(evaluator: Evaluator):
    copies = evaluator.all_distances(evaluator.data.train_in_units(300))
    assert copies["nearest_training"] == pytest.approx(0.0, abs=1e-3)
    new = evaluator.all_distances(evaluator.data.held_out)
    assert new["nearest_training"] == pytest.approx(1.0)


def test_frechet_needs_labelled_images():
    config = Config.model_validate({"metrics": {"distance": "frechet"}})
    with pytest.raises(UserError, match="is for images"):
        Evaluator(load_dataset(config.data), config.metrics)


def test_fid_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(*settings: str) -> str:
        config = load_config("digits", settings)
        with pytest.raises(UserError) as error:
            Evaluator(load_dataset(config.data), config.metrics)
        return str(error.value)

    assert "get weights-inception" in refused("metrics.distance=fid")
    weights = tmp_path / "weights.pth"
    assert "never downloaded" in refused(f"metrics.inception_path={weights}")
    weights.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    assert "pip install 'sft-rl[fid]'" in refused(f"metrics.inception_path={weights}")
