"""Images from scikit-learn, CIFAR-10's binaries, folders and tables; bad files are named."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from sft_rl.config import DataConfig
from sft_rl.data import load_dataset
from sft_rl.data.images import ImageDataset
from sft_rl.errors import UserError

RNG = np.random.default_rng(0)


def picture(size: tuple[int, int] = (12, 12), **options: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (*size[::-1], 3), dtype=np.uint8), **options)


def load(**options: object) -> ImageDataset:
    data = load_dataset(DataConfig.model_validate(options))
    assert isinstance(data, ImageDataset)
    return data


def test_the_digits_are_split_and_scaled():
    data = load(name="digits", test_fraction=0.3)
    assert data.shape == (1, 8, 8)
    assert len(data.train) + len(data.held_out) == 1797
    assert len(data.labels) == len(data.train)
    shares = (
        data.held_out_labels.bincount() / torch.cat([data.labels, data.held_out_labels]).bincount()
    )
    assert ((shares - 0.3).abs() < 0.01).all(), "the same share of each digit"
    batch = data.batch(500, torch.Generator().manual_seed(0))
    assert batch.min() == -1.0
    assert batch.max() == 1.0
    restored = data.units.to_data(data.units.to_model(data.train))
    assert np.array_equal(restored, data.train.numpy())
    assert data.units.to_data(torch.tensor([[[[-3.0, 3.0]]]])).tolist() == [[[[0, 16]]]]


def test_another_seed_splits_otherwise_and_has_another_fingerprint():
    first, second = load(name="digits"), load(name="digits", seed=1)
    assert first.fingerprint == load(name="digits").fingerprint
    assert first.fingerprint != second.fingerprint
    assert first.fingerprint != load(name="digits", flip=True).fingerprint


def test_about_half_of_a_batch_is_mirrored():
    plain, flipped = load(name="digits"), load(name="digits", flip=True)
    a, b = (data.batch(400, torch.Generator().manual_seed(0)) for data in (plain, flipped))
    same = (a == b).flatten(1).all(1)
    mirrored = (a.flip(-1) == b).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 150 < same.sum() < 250


def write_cifar(folder: Path, num: int = 4) -> np.ndarray:
    """Write all six files; return the table of the first."""
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    tables = RNG.integers(0, 256, (len(names), num, 3073), dtype=np.uint8)
    tables[:, :, 0] %= 10
    for name, table in zip(names, tables, strict=True):
        table.tofile(folder / name)
    return tables[0]


def test_cifar_is_read_from_its_binaries(tmp_path: Path):
    table = write_cifar(tmp_path)
    data = load(name="cifar10", path=str(tmp_path))
    assert data.shape == (3, 32, 32)
    assert len(data.train) == 20
    assert len(data.held_out) == 4
    assert data.labels[:4].tolist() == table[:, 0].tolist()
    # red first, row by row
    assert data.train[0, 0, 0, :5].tolist() == table[0, 1:6].tolist()
    assert data.train[0, 2, 31, 31] == table[0, 3072]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no file data_batch_3.bin"),
        (b"", "has 0 bytes"),
        (b"x" * 3000, "has 3000 bytes"),
        (b"\x0b" * 3073, "label above 9"),
    ],
)
def test_a_bad_cifar_file_is_named(tmp_path: Path, content: bytes | None, words: str):
    write_cifar(tmp_path)
    file = tmp_path / "data_batch_3.bin"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        load(name="cifar10", path=str(tmp_path))
    assert "data_batch_3.bin" in str(error.value)


def write_folder(folder: Path) -> None:
    for kind in ("cats", "dogs"):
        (folder / kind).mkdir(parents=True)
        for i in range(5):
            picture().save(folder / kind / f"{i}.png")


def test_a_folder_of_pictures_with_classes(tmp_path: Path):
    write_folder(tmp_path)
    data = load(name="images", path=str(tmp_path), image_size=8, test_fraction=0.3)
    assert data.shape == (3, 8, 8)
    assert (len(data.train), len(data.held_out)) == (7, 3)
    assert sorted([*data.labels.tolist(), *data.held_out_labels.tolist()]) == [0] * 5 + [1] * 5
    grey = load(name="images", path=str(tmp_path), image_size=8, channels=1)
    assert grey.shape == (1, 8, 8)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_table_of_pictures(tmp_path: Path, kind: str):
    pictures = [picture() for _ in range(6)]
    table = datasets.Dataset.from_dict(
        {"image": pictures}, features=datasets.Features({"image": datasets.Image()})
    )
    if kind == "parquet":
        table.to_parquet(tmp_path / "images.parquet")
    else:
        table.save_to_disk(tmp_path)
    data = load(name="images", path=str(tmp_path), image_size=12, test_fraction=0.34)
    everything = {image.tobytes() for image in [*data.train.numpy(), *data.held_out]}
    assert everything == {np.asarray(p).transpose(2, 0, 1).tobytes() for p in pictures}
    assert data.labels is None


def test_the_crop_cuts_the_box(tmp_path: Path):
    for i in range(4):
        Image.fromarray(np.full((20, 10, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    centre = np.zeros((20, 10, 3), np.uint8)
    centre[6:12, 2:8] = 200
    Image.fromarray(centre).save(tmp_path / "centre.png")
    data = load(name="images", path=str(tmp_path), image_size=6, crop=[2, 6, 8, 12])
    everything = np.concatenate([data.train.numpy(), data.held_out])
    assert sorted(image.min() for image in everything) == [0, 1, 2, 3, 200]
    with pytest.raises(UserError, match="not square; set"):
        load(name="images", path=str(tmp_path), image_size=6)
    with pytest.raises(UserError, match="does not fit into 10x20"):
        load(name="images", path=str(tmp_path), image_size=6, crop=[2, 6, 12, 16])


def test_a_corrupt_picture_is_named(tmp_path: Path):
    write_folder(tmp_path)
    whole = (tmp_path / "cats" / "3.png").read_bytes()
    for content in (b"no picture", b"", whole[: len(whole) // 2]):
        (tmp_path / "cats" / "3.png").write_bytes(content)
        with pytest.raises(UserError) as error:
            load(name="images", path=str(tmp_path), image_size=12)
        assert str(Path("cats") / "3.png") in str(error.value)
        assert "\n" not in str(error.value)


def test_other_bad_paths_are_named(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "broken.parquet").write_text("PAR1")
    datasets.Dataset.from_dict({"x": [1, 2]}).to_parquet(tmp_path / "numbers.parquet")
    for name in ("missing", "empty", "a.txt", "broken.parquet", "numbers.parquet"):
        with pytest.raises(UserError) as error:
            load(name="images", path=str(tmp_path / name))
        assert name in str(error.value)
        assert str(error.value).startswith("data.path: ")
        assert "\n" not in str(error.value)
