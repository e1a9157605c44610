"""A user's files: read back what was written, and say in one line what is wrong with them."""

import gzip
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sft_rl.config import DataConfig, Samples
from sft_rl.config.files import load_config
from sft_rl.data import Units, dataset_of, load_dataset
from sft_rl.data.point_files import read_points
from sft_rl.data.points import draw_points
from sft_rl.errors import UserError
from sft_rl.metrics.evaluation import Evaluator

POINTS = np.random.default_rng(0).normal([1.0, -50.0, 3.0], [0.1, 20.0, 1.0], (200, 3))


def write(file: Path) -> Path:
    frame = pd.DataFrame(POINTS, columns=["a", "b", "c"])
    {".npy": lambda: np.save(file, POINTS), ".csv": lambda: frame.to_csv(file, index=False)}.get(
        file.suffix, lambda: frame.to_parquet(file)
    )()
    return file


def read(file: Path, **options: object) -> tuple[list[str], np.ndarray, dict[str, str]]:
    table = read_points(DataConfig.model_validate({"path": str(file), **options}))
    return list(table.names), table.values, table.notes


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
def test_files_are_read(tmp_path: Path, suffix: str):
    assert read(write(tmp_path / f"points{suffix}"))[1] == pytest.approx(POINTS, rel=1e-6)


def test_a_csv_without_names_loses_no_row(tmp_path: Path):
    np.savetxt(tmp_path / "points.csv", POINTS, delimiter=",")
    assert read(tmp_path / "points.csv")[1] == pytest.approx(POINTS, rel=1e-6)


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
        assert read(file)[1] == pytest.approx(POINTS, rel=1e-6)
        with pytest.raises(UserError, match="exists already"):
            units.write(file, POINTS[:1])
        assert len(read(file)[1]) == len(POINTS)
    with pytest.raises(UserError, match="cannot write"):
        units.write(tmp_path / "no" / "folder.npy", POINTS)


ROWS = [[1.5, -2.0], [0.25, 3.0], [1e-3, 4.0], [7.0, 5.5], [2.0, 2.0]]
XY = "x,y\n1.5,-2\n0.25,3\n1e-3,4\n7,5.5\n2,2\n"
COUNTED = ",x,y\n" + "".join(f"{i},{x},{y}\n" for i, (x, y) in enumerate(ROWS))
FORMS = {
    "as pandas writes it, with its index": (COUNTED, ["x", "y"]),
    "read and written again": (COUNTED.replace(",x", "Unnamed: 0,x", 1), ["x", "y"]),
    "as R writes it, from 1": (
        '"","x","y"\n' + "".join(f'"{i}",{x},{y}\n' for i, (x, y) in enumerate(ROWS, 1)),
        ["x", "y"],
    ),
    "as R's write.table": (COUNTED[1:], ["x", "y"]),
    "pandas' names of an array": (XY.replace("x,y", "0,1"), ["0", "1"]),
    "a spreadsheet's in German": (XY.replace(",", ";").replace(".", ","), ["x", "y"]),
    "the same without names": (XY[4:].replace(",", ";").replace(".", ","), ["0", "1"]),
    "decimal commas between tabs": (XY.replace(",", "\t").replace(".", ","), ["x", "y"]),
    "semicolons and points": (XY.replace(",", ";"), ["x", "y"]),
    "a comma at every end": (XY[:4] + XY[4:].replace("\n", ",\n"), ["x", "y"]),
    "and one in the first row": (XY.replace("\n", ",\n"), ["x", "y"]),
    "numpy.savetxt with names": ("# x y\n" + XY[4:].replace(",", "  "), ["x", "y"]),
    "Windows' ends of lines, its mark, empty lines": (
        "\ufeff" + XY.replace("\n", "\r\n\r\n"),
        ["x", "y"],
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_tables_are_read_as_people_write_them(tmp_path: Path, name: str):
    text, names = FORMS[name]
    file = tmp_path / "points.csv"
    file.write_text(text, encoding="utf-8", newline="")
    found, values, _ = read(file)
    assert found == names
    np.testing.assert_array_equal(values, ROWS)
    with gzip.open(tmp_path / "points.csv.gz", "wt", encoding="utf-8", newline="") as stream:
        stream.write(text)
    np.testing.assert_array_equal(read(tmp_path / "points.csv.gz")[1], ROWS)


UNCLEAR = {
    "1,?\n" + XY[4:]: ("data.header=", {"header": True}, ["1", "?"]),
    "0,1\n1,1\n1,0\n0,0\n": ("data.header=", {"header": False}, ["0", "1"]),
    COUNTED[5:]: ("data.columns=", {"columns": [1, 2]}, ["1", "2"]),
    COUNTED.replace(",x", "id,x", 1): ("data.columns=", {"columns": ["id", "x"]}, ["id", "x"]),
    COUNTED.replace("\n0,", "\n9,"): ("data.columns=", {"columns": ["x"]}, ["x"]),
    "x,y,kind\n1,2,a\n3,4,b\n": ("data.columns=[x,y]", {"columns": ["y", "x"]}, ["y", "x"]),
    "x\n0,5\n1,5\n2,7\n": ("data.separator=", {"separator": "semicolon"}, ["x"]),
    "1,2;3\n4,5;6\n7,8;9\n": ("", {"separator": "semicolon"}, ["0", "1"]),
}


@pytest.mark.parametrize("text", UNCLEAR)
def test_what_is_unclear_is_refused_with_the_setting_that_settles_it(tmp_path: Path, text: str):
    words, settings, names = UNCLEAR[text]
    file = tmp_path / "points.csv"
    file.write_text(text)
    if words:
        with pytest.raises(UserError) as error:
            read(file)
        assert words in str(error.value)
    assert read(file, **settings)[0] == names


def test_a_row_far_down_is_not_shifted_or_cut(tmp_path: Path):
    """Beyond the rows by which the form is found out; nor are columns that nobody chose."""
    file = tmp_path / "points.csv"
    for odd, words in (
        ("1,2,3,4", "row 500 has 4 fields"),
        ("1,2", "row 500 has 2"),
        ("1,?,3", "500"),
    ):
        file.write_text("x,y,z\n" + "0.5,2,3\n" * 500 + f"{odd}\n")
        with pytest.raises(UserError, match=words):
            read(file, columns=["y"])


def test_names_of_columns_are_looked_up(tmp_path: Path):
    file = tmp_path / "points.csv"
    file.write_text(XY)
    with pytest.raises(UserError, match=r"^data.columns: .* has no 'z'; choose from: x, y"):
        read(file, columns=["z"])
    file.write_text('x;"y\nm"\n?;1\n2;3\n')  # a name of two lines, as spreadsheets write it
    with pytest.raises(UserError, match=r"data.columns=\[y m\] leaves") as error:
        read(file)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"data.columns"):
        load_config("swiss_roll", ["data.columns=[x]"])


def test_parquet_of_any_number_type_and_with_an_index(tmp_path: Path):
    frame = pd.DataFrame(
        {
            "whole": pd.array([1, 2, 3, 5], dtype="Int64"),
            "real": pd.array([0.5, 1.5, 2.5, 4.0], dtype="Float32"),
            "yes": pd.array([True, False, True, True], dtype="boolean"),
            "price": [Decimal("1.25"), Decimal("2.50"), Decimal("0.75"), Decimal("9")],
            "small": np.arange(1, 5, dtype=np.float16) ** 2,
        }
    )
    expected = [[1, 0.5, 1, 1.25, 1], [2, 1.5, 0, 2.5, 4], [3, 2.5, 1, 0.75, 9], [5, 4, 1, 9, 16]]
    file = tmp_path / "points.parquet"
    frame.to_parquet(file)
    assert read(file)[0] == list(frame)
    np.testing.assert_array_equal(read(file)[1], expected)
    np.testing.assert_array_equal(
        dataset_of(frame, DataConfig(standardise=False)).units.samples.shape, 5
    )
    frame.set_index("whole").to_parquet(file)  # a column that has become the index
    assert sorted(read(file)[0]) == sorted(frame)
    frame.set_index(pd.Index([3, 1, 7, 2])).to_parquet(file)  # rows that were chosen or shuffled
    assert read(file)[0] == list(frame)
    frame.assign(name=list("abcd")).to_parquet(file)
    with pytest.raises(UserError, match="column 'name' holds"):
        read(file)
    assert read(file, columns=["yes", "whole"])[1].tolist() == [[1, 1], [0, 2], [1, 3], [1, 5]]
    frame.loc[2, "whole"] = pd.NA
    frame.to_parquet(file)
    with pytest.raises(
        UserError, match="missing or not finite, the first in row 2, column 'whole'"
    ):
        read(file)


def test_arrays_by_name(tmp_path: Path):
    x, y = np.array(ROWS).T
    file = tmp_path / "points.npz"
    np.savez(file, x=x, y=y)
    assert read(file)[0] == ["x", "y"]
    np.testing.assert_array_equal(read(file, columns=["y", "x"])[1], np.array(ROWS)[:, ::-1])
    np.savez_compressed(file, np.array(ROWS))
    np.testing.assert_array_equal(read(file)[1], ROWS)
    np.savez(file, points=np.array(ROWS), labels=np.arange(5))
    with pytest.raises(UserError, match=r"points \(5, 2\), labels \(5,\); data.columns="):
        read(file)
    np.testing.assert_array_equal(read(file, columns=["points"])[1], ROWS)
    np.save(tmp_path / "records.npy", pd.DataFrame({"x": x, "y": y}).to_records(index=False))
    assert read(tmp_path / "records.npy")[0] == ["x", "y"]


FAR = {
    "UTM": (5.3e6, 1.0),
    "an offset": (1e9, 1.0),
    "epoch": (1.7e9, 3600.0),
    "huge": (1e20, 1e18),
    "tiny": (0, 1e-30),
}


@pytest.mark.parametrize("name", FAR)
def test_points_far_from_zero_keep_their_digits(
    tmp_path: Path, name: str, tiny_settings: tuple[str, ...]
):
    middle, spread = FAR[name]
    normal = np.random.default_rng(0).normal(size=(400, 2))
    np.save(tmp_path / "points.npy", middle + spread * normal)
    np.save(tmp_path / "near.npy", normal)
    near, far = (
        load_dataset(DataConfig(path=str(tmp_path / file))) for file in ("near.npy", "points.npy")
    )
    torch.testing.assert_close(far.train, near.train, rtol=0, atol=1e-5)
    restored = (far.units.to_data(far.train) - middle) / spread
    np.testing.assert_allclose(restored, near.units.to_data(near.train), atol=1e-5)
    metrics = load_config("swiss_roll", tiny_settings).metrics
    generated = torch.from_numpy(np.random.default_rng(1).normal(size=(400, 2)))
    found, expected = (
        Evaluator(data, metrics).all_distances(data.units.to_data(generated))
        for data in (far, near)
    )
    for one in ("two_sample", "precision", "recall", "mmd"):
        assert found[one] == pytest.approx(expected[one], abs=1e-5)
    for one in ("excess", "earth_movers", "sliced_wasserstein"):
        assert found[one] / spread == pytest.approx(expected[one], rel=1e-4)


def test_a_column_that_differs_by_rounding_is_constant(tmp_path: Path):
    table = np.c_[np.random.default_rng(0).normal(size=10_000), np.full(10_000, 0.1)]
    assert table[:, 1].std() > 0
    np.save(tmp_path / "points.npy", table)
    with pytest.raises(UserError, match="constant column '1'"):
        load_dataset(DataConfig(path=str(tmp_path / "points.npy")))
    np.save(tmp_path / "points.npy", 1e200 * np.random.default_rng(0).normal(size=(50, 2)))
    with pytest.raises(UserError, match="too large numbers in column '0'"):
        load_dataset(DataConfig(path=str(tmp_path / "points.npy")))


@pytest.mark.parametrize("num", [4, 8, 19])
def test_few_rows_give_numbers_or_none(tmp_path: Path, num: int, tiny_settings: tuple[str, ...]):
    rows = np.random.default_rng(0).normal(size=(num, 2))
    rows[0] = rows[1]
    np.save(tmp_path / "points.npy", rows)
    data = load_dataset(DataConfig(path=str(tmp_path / "points.npy")))
    assert data.description == {
        "rows": f"{num}, {max(num // 5, 2)} held out",
        "columns": "0, 1",
        "repeated rows": "1, equal to one before",
    }
    evaluator = Evaluator(data, load_config("swiss_roll", tiny_settings).metrics)
    generated = np.random.default_rng(1).normal(size=(800, 2))
    for numbers in (evaluator.all_distances(generated), evaluator.noise_floors()):
        assert np.isfinite(list(numbers.values())).all()
