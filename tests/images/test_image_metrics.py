"""Distances of digits: what must be far is far, what is wrong is told in a line."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sft_rl.config import Config, MetricsConfig
from sft_rl.config.files import load_config
from sft_rl.data import load_dataset
from sft_rl.data.images import ImageDataset
from sft_rl.errors import UserError
from sft_rl.metrics.by_class import by_class
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.metrics.fidelity import read_gaussian
from sft_rl.metrics.images import BLOCK, CHUNK, FeaturesTo, Images, nearest_distances


def test_nearest_distances():
    images = np.array([[[0, 0]], [[3, 4]]], np.uint8)
    others = np.array([[[0, 0]], [[6, 8]]], np.uint8)
    assert nearest_distances(images, others).tolist() == pytest.approx([0.0, 5.0], abs=1e-3)
    many = np.random.default_rng(0).integers(0, 256, (BLOCK + CHUNK + 3, 1, 1, 4), np.uint8)
    few, many = many[-CHUNK - 1 :], many[:-CHUNK]  # of which one is in both
    apart = few.reshape(-1, 1, 4).astype(float) - many.reshape(1, -1, 4)
    expected = np.linalg.norm(apart, axis=-1).min(axis=1)
    # Squares of 2e5 in float32: roots of their rounding where points coincide.
    np.testing.assert_allclose(nearest_distances(few, many), expected, rtol=1e-3, atol=0.3)


def evaluator_of(*settings: str) -> Evaluator:
    config = load_config("digits", ["metrics.num_samples=500", *settings])
    return Evaluator(load_dataset(config.data), config.metrics)


@pytest.fixture(scope="module")
def evaluator(_own_machine_room: None) -> Evaluator:
    return evaluator_of()


def test_the_classifier_knows_digits_and_stays_in_the_cache(evaluator: Evaluator):
    protocol = evaluator.protocol
    assert protocol["classifier_accuracy"] > 0.95
    again = Evaluator(evaluator.data, MetricsConfig(num_samples=500))
    assert again.protocol == protocol
    train = evaluator.data.train_in_units(500)
    assert again.distance(train) == evaluator.distance(train)


class RealByClass:
    """Draws real digits of the class that is asked for, or, if wrong, of the next one."""

    num_classes, device = 10, torch.device("cpu")

    def __init__(self, data: ImageDataset, *, wrong: int = -1) -> None:
        self.data, self.wrong = data, wrong

    def sample(self, num: int, source: torch.Generator, labels: torch.Tensor) -> torch.Tensor:
        asked = torch.where(labels == self.wrong, labels + 1, labels)
        return self.data.batch(num, source, asked)


class OneByClass(RealByClass):
    """Draws image number 3 whenever class 3 is asked for."""

    def sample(self, num: int, source: torch.Generator, labels: torch.Tensor) -> torch.Tensor:
        return self.data.units.to_model(self.data.train[labels])


def test_samples_agree_with_their_class_or_with_another(evaluator: Evaluator):
    agree = by_class(evaluator, RealByClass(evaluator.data), lambda *_: {})
    assert len(agree) == 10
    assert min(one["agreement"] for one in agree) > 0.9
    wrong = by_class(evaluator, RealByClass(evaluator.data, wrong=4), lambda *_: {})
    assert wrong[4]["agreement"] < 0.1
    assert wrong[5] == agree[5]
    assert min(one["diversity"] for one in agree) > 0
    same = by_class(evaluator, OneByClass(evaluator.data), lambda x, _: {"bright": x[:, 0, 4, 4]})
    assert {one["diversity"] for one in same} == {0.0}
    assert {one["term_bright_se"] for one in same} == {0.0}
    ones = evaluator.data.units.to_model(evaluator.data.train[:10])[:, 0, 4, 4]
    assert [one["term_bright"] for one in same] == pytest.approx(ones.tolist())


def test_real_digits_are_at_zero_and_wrong_ones_far(evaluator: Evaluator):
    train = evaluator.data.train_in_units(500)
    floor = evaluator.noise_floors()
    assert floor["frechet_inf"] == evaluator.distance(train)
    for name in ("frechet_inf", "kernel"):
        assert abs(floor[name]) < 3 * floor[f"{name}_se"]
    assert floor["frechet"] > 2 * floor["frechet_se"]  # the bias of so few
    ones = train[evaluator.data.labels[:500].numpy() == 1]
    for wrong in (np.flip(train, 2).copy(), np.repeat(ones, 5, axis=0), np.zeros_like(train)):
        distances = evaluator.all_distances(wrong)
        for name in ("frechet_inf", "kernel"):
            assert distances[name] > 5 * (distances[f"{name}_se"] + floor[f"{name}_se"])


def test_a_floor_has_the_samples_counts_or_shows_what_does_not_depend_on_them():
    plenty = evaluator_of("metrics.num_samples=1000").noise_floors()
    assert {"frechet", "precision", "nearest_training"} <= plenty.keys()
    few = evaluator_of("metrics.num_samples=2000").noise_floors()  # 1,079 training images
    values = ("frechet_inf", "kernel")
    assert few.keys() == {*values, *(f"{name}_se" for name in values)}


def test_of_data_whose_pictures_repeat_newness_is_not_told():
    """The held-out images are training images: no distance to the nearest is usual."""
    evaluator = evaluator_of("metrics.num_samples=100")
    data = evaluator.data
    repeated = replace(data, held_out=data.train[: len(data.held_out)].numpy())
    found = Evaluator(repeated, evaluator.config).all_distances(data.train_in_units(100))
    assert "nearest_training" not in found
    assert "frechet_inf" in found


def test_copies_are_found_and_new_images_are_not(evaluator: Evaluator):
    copies = evaluator.all_distances(evaluator.data.train_in_units(300))
    assert copies["nearest_training"] == pytest.approx(0.0, abs=1e-3)
    new = evaluator.all_distances(evaluator.data.held_out)
    assert new["nearest_training"] == pytest.approx(1.0)


def test_against_training_images_what_is_held_out_watches_and_is_the_floor():
    usual, evaluator = evaluator_of(), evaluator_of("metrics.reference=train")
    data = evaluator.data
    assert np.array_equal(evaluator.reference, data.train.numpy())
    assert evaluator.protocol["reference"] == "training digits"
    assert usual.protocol["reference"] == "held-out digits"
    assert usual.key != evaluator.key
    floors = evaluator.noise_floors()
    assert abs(floors["frechet_inf"]) < 3 * floors["frechet_inf_se"]
    assert floors["nearest_training"] > 0.9  # held-out images are no copies
    assert evaluator.distance(data.train.numpy()) == pytest.approx(0.0, abs=1e-6)
    _, watch = evaluator._validation
    _, usual_watch = usual._validation
    held_out, train = data.held_out, data.train_in_units(1000)
    assert watch(held_out)["frechet_inf"] == pytest.approx(0.0, abs=1e-6)
    assert usual_watch(train)["frechet_inf"] == pytest.approx(0.0, abs=1e-6)
    assert usual_watch(held_out).keys() == {"frechet_inf", "frechet_inf_se"}


@pytest.mark.parametrize("name", ["frechet", "kernel"])
def test_another_distance_of_the_same_features_may_lead(name: str):
    leads = evaluator_of(f"metrics.distance={name}")
    samples = leads.data.train_in_units(500)
    assert leads.distance(samples) == leads.all_distances(samples)[name]
    assert leads.key == evaluator_of().key


def test_frechet_needs_labelled_images():
    config = Config.model_validate({"metrics": {"distance": "frechet"}})
    with pytest.raises(UserError, match="is for images"):
        Evaluator(load_dataset(config.data), config.metrics)


def refused(*settings: str, preset: str = "digits") -> str:
    config = load_config(preset, settings)
    with pytest.raises(UserError) as error:
        Evaluator(load_dataset(config.data), config.metrics)
    (line,) = str(error.value).splitlines()
    return line


def test_fid_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert "get weights-inception" in refused("metrics.distance=fid")
    weights = tmp_path / "weights.pth"
    assert "never downloaded" in refused(f"metrics.inception_path={weights}")
    weights.write_bytes(b"")
    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "pip install 'sft-rl[fid]'" in refused(f"metrics.inception_path={weights}")


def test_what_does_not_go_with_the_leading_metric_is_refused(tmp_path: Path):
    assert "metrics.reference goes with frechet_inf" in refused(
        "metrics.reference=train", preset="swiss_roll"
    )
    assert "metrics.reference_stats goes with fid" in refused("metrics.reference_stats=x.npz")
    pixels = "metrics.distance=sliced_wasserstein"
    assert "metrics.dinov2_path goes with" in refused("metrics.dinov2_path=x", pixels)


def write_stats(**arrays: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **arrays)


def write_single(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.eye(3))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, "no such file; it is never downloaded"),
        (lambda path: path.write_bytes(b"no zip"), "pickle"),
        (lambda path: path.write_bytes(b""), "No data left in file"),
        (write_single, "is a single array, expected an .npz"),
        (write_stats(mu=np.zeros(3)), "has no sigma, only ['mu']"),
        (write_stats(m=np.zeros(3)), "has no mu and no sigma"),
        (write_stats(mu=np.zeros(3), sigma=np.eye(4)), "(3,) and sigma (4, 4), expected (N,)"),
        (write_stats(mu=np.full(3, np.nan), sigma=np.eye(3)), "must be finite numbers"),
        (write_stats(mu=np.array([None]), sigma=np.eye(1)), "allow_pickle=False"),
    ],
)
def test_statistics_that_are_not_there_or_others_are_one_line(
    tmp_path: Path, write: Callable[[Path], None], words: str
):
    path = tmp_path / "stats.npz"
    write(path)
    with pytest.raises(UserError) as error:
        read_gaussian(str(path))
    (line,) = str(error.value).splitlines()
    assert line.startswith("metrics.reference_stats: ")
    assert words in line


def test_published_statistics_stand_for_the_real_images(evaluator: Evaluator, tmp_path: Path):
    features, real = evaluator.measure.features[0], evaluator.reference
    values = features(real)
    path = tmp_path / "stats.npz"
    np.savez(path, mu=values.mean(axis=0), sigma=np.cov(values, rowvar=False))
    given = FeaturesTo(features, real, read_gaussian(str(path)))
    fitted, samples = FeaturesTo(features, real), evaluator.data.train_in_units(500)
    one, other = given.all(samples), fitted.all(samples)
    assert one.numbers["frechet"] == pytest.approx(other.numbers["frechet"])
    assert one.numbers["kernel"] == other.numbers["kernel"]
    assert one.numbers["frechet_se"] < other.numbers["frechet_se"]  # they are exact
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(UserError, match="of 3 features, expected 32"):
        FeaturesTo(features, real, read_gaussian(str(path)))


def test_dinov2_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    setting = f"metrics.dinov2_path={tmp_path}"
    assert "no config.json in" in refused(setting)
    (tmp_path / "config.json").write_text("{")
    assert "no model.safetensors in" in refused(setting)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "config.json: Expecting" in refused(setting)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert "is of type 'vit', expected 'dinov2'" in refused(setting)
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'sft-rl[dino]'" in refused(setting)


def test_dinov2_measures_beside_the_leading_features(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    samples = "metrics.num_samples=60"
    evaluator = evaluator_of(f"metrics.dinov2_path={tmp_path}", samples)
    numbers = evaluator.all_distances(evaluator.data.train_in_units(60))
    assert {"frechet_inf", "fd_dinov2", "fd_dinov2_se", "fd_dinov2_inf"} <= numbers.keys()
    assert numbers["fd_dinov2"] > 0.0
    assert evaluator.key != evaluator_of(samples).key
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    broken = evaluator_of(f"metrics.dinov2_path={tmp_path}", samples)
    with pytest.raises(UserError, match=r"metrics\.dinov2_path: cannot read"):
        broken.all_distances(evaluator.data.train_in_units(60))


def test_what_others_fitted_is_in_the_key_by_its_content(evaluator: Evaluator, tmp_path: Path):
    keys, features = set(), evaluator.measure.features
    for name, scale in (("a", 1.0), ("b", 2.0), ("c", 1.0)):
        np.savez(tmp_path / f"{name}.npz", mu=np.zeros(32), sigma=scale * np.eye(32))
        config = MetricsConfig(reference_stats=str(tmp_path / f"{name}.npz"))
        keys.add(Images("frechet", config, evaluator.data, features).key)
    assert len(keys) == 2  # where a file lies says nothing
    assert evaluator.measure.key not in keys
