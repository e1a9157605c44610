"""A user's files: read back what was written, and say in one line what is wrong with them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sft_rl.config import DataConfig, Samples
from sft_rl.data import Units, load_dataset
from sft_rl.data.points import draw_points, read_points
from sft_rl.errors import UserError

POINTS = np.random.default_rng(0).normal([1.0, -50.0, 3.0], [0.1, 20.0, 1.0], (200, 3))


def write(file: Path) -> Path:
    frame = pd.DataFrame(POINTS, columns=["a", "b", "c"])
    {".npy": lambda: np.save(file, POINTS), ".csv": lambda: frame.to_csv(file, index=False)}.get(
        file.suffix, lambda: frame.to_parquet(file)
    )()
    return file


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
def test_files_are_read(tmp_path: Path, suffix: str):
    assert read_points(str(write(tmp_path / f"points{suffix}"))) == pytest.approx(POINTS, rel=1e-6)


def test_a_csv_without_names_loses_no_row(tmp_path: Path):
    np.savetxt(tmp_path / "points.csv", POINTS, delimiter=",")
    assert read_points(str(tmp_path / "points.csv")) == pytest.approx(POINTS, rel=1e-6)


def test_standardised_for_the_model_and_back_on_output(tmp_path: Path):
    path = str(write(tmp_path / "points.npy"))
    data = load_dataset(DataConfig(path=path))
    assert data.shape == (3,)
    torch.testing.assert_close(data.train.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(data.train.std(0, correction=0), torch.ones(3))
    restored = data.units.to_data(data.train)
    assert len(restored) == 160
    held_out = data.real(1000, seed=0, draw=0), data.real(1000, seed=0, draw=1)
    everything = np.concatenate([restored, *held_out])
    np.testing.assert_allclose(np.sort(everything, 0), np.sort(POINTS, 0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 7])
def test_the_swiss_roll_is_that_of_scikit_learn_to_the_bit(seed: int):
    from sklearn.datasets import make_swiss_roll

    theirs = make_swiss_roll(500, noise=0.05, random_state=seed)[0][:, [0, 2]] / 20.0
    assert np.array_equal(draw_points("swiss_roll", 500, 0.05, seed), theirs.astype(np.float32))


def test_the_swiss_roll_is_the_papers():
    points = draw_points("swiss_roll", 1000, 0.0, 0)
    radius = np.linalg.norm(points, axis=1) * 20
    assert radius.min() >= 1.5 * np.pi - 1e-3
    assert radius.max() <= 4.5 * np.pi + 1e-3


BAD = {
    "empty.npy": np.zeros((0, 2)),
    "flat.npy": np.zeros(5),
    "nan.npy": np.array([[1.0, np.nan], [2.0, 3.0]]),
    "text.npy": np.array([["a", "b"]]),
    "objects.npy": np.array([[{}, {}]], dtype=object),
    "complex.npy": np.array([[1j, 2.0]]),
    "few.npy": np.array([[1.0, 2.0], [2.0, 3.0], [4.0, 5.0]]),
    "constant.npy": np.array([[1.0, 2.0]] * 50),
}


BAD_TEXT = {
    "points.txt": "1 2",
    "empty.csv": "",
    "header.csv": "a,b\n",
    "hole.csv": "a,b\n1,2\n3,\n5,6\n7,8\n",
    "text.csv": "a,b\n1,2\n3,x\n5,6\n7,8\n",
    "ragged.csv": "1,2\n3,4,5\n",
    "broken.npy": "\x93NUMPY",
    "broken.parquet": "PAR1",
}


@pytest.mark.parametrize("name", [*BAD, *BAD_TEXT, "missing.npy"])
def test_bad_files_are_named(tmp_path: Path, name: str):
    file = tmp_path / name
    if name in BAD:
        np.save(file, BAD[name], allow_pickle=True)
    elif name in BAD_TEXT:
        file.write_text(BAD_TEXT[name])
    with pytest.raises(UserError) as error:
        load_dataset(DataConfig(path=str(file)))
    assert name in str(error.value)
    assert str(error.value).startswith("data.path: ")
    assert "\n" not in str(error.value)


def test_samples_are_written_and_never_over_others(tmp_path: Path):
    units = Units(Samples(shape=(3,), shift=(0.0,), scale=(1.0,), fingerprint="none"))
    for file in (tmp_path / "samples.npy", tmp_path / "samples.csv"):
        units.write(file, POINTS)
        assert read_points(str(file)) == pytest.approx(POINTS, rel=1e-6)
        with pytest.raises(UserError, match="exists already"):
            units.write(file, POINTS[:1])
        assert len(read_points(str(file))) == len(POINTS)
    with pytest.raises(UserError, match="cannot write"):
        units.write(tmp_path / "no" / "folder.npy", POINTS)
