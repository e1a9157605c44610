"""Any file: its points to the last bit, or one line that says what is wrong; never other points."""

import gzip
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sft_rl.config import DataConfig
from sft_rl.data.columns import NumberTable
from sft_rl.data.point_files import ENDINGS, read_points
from sft_rl.errors import UserError

TABLES = arrays(
    np.float64,
    st.tuples(st.integers(1, 6), st.integers(1, 4)),
    elements=st.floats(allow_nan=False, allow_infinity=False) | st.integers(-3, 3).map(float),
)
WORDS = st.sampled_from(
    [
        "x",
        "y",
        "0",
        "1",
        "-2.5",
        "1,5",
        "1e3",
        "nan",
        "",
        "?",
        '"',
        "#",
        "a b",
        "\t",
        ";",
        "é",
        "\x0b",
    ]
)
LINES = st.lists(st.lists(WORDS, min_size=1, max_size=4), max_size=5)
NUMBERS = pytest.mark.parametrize("num", [50, pytest.param(30_000, marks=pytest.mark.slow)])


def fuzz(num: int) -> settings:
    return settings(max_examples=num, derandomize=True, deadline=None, database=None)


def points_or_one_line(file: Path, **options: object) -> NumberTable | None:
    try:
        table = read_points(DataConfig.model_validate({"path": str(file), **options}))
    except UserError as error:
        assert str(error).startswith("data.")
        assert len(str(error).splitlines()) == 1
        return None
    assert table.values.dtype == np.float64
    assert np.isfinite(table.values).all()
    assert table.values.shape[1] == len(table.names)
    return table


@NUMBERS
def test_what_pandas_writes_is_read_or_refused(tmp_path: Path, num: int):
    """With any separator, decimal sign, names and index; a refusal can be settled."""
    file = tmp_path / "points.csv"

    @fuzz(num)
    @given(TABLES, st.sampled_from(";\t| ,"), st.booleans(), st.booleans(), st.booleans())
    def holds(values: np.ndarray, sep: str, comma: bool, header: bool, index: bool) -> None:
        comma = comma and sep != ","
        frame = pd.DataFrame(values).add_prefix("x")
        frame.to_csv(file, sep=sep, decimal="," if comma else ".", header=header, index=index)
        found = points_or_one_line(file)
        if found is None or found.values.shape != values.shape:
            names = list(frame) if header else [str(i + index) for i in range(values.shape[1])]
            kind = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe", " ": "space"}[sep]
            settled = {"separator": kind, "header": header, "columns": names}
            shape = None if found is None else found.values.shape
            found = points_or_one_line(file, **settled)
            assert found is not None
            # Nothing tells one number with a decimal comma from two with a comma between.
            assert shape is None or (comma and values.shape[1] == 1 and not header)
        np.testing.assert_array_equal(found.values, values)

    holds()


@NUMBERS
def test_any_lines_are_read_or_refused(tmp_path: Path, num: int):
    file = tmp_path / "points.csv"

    @fuzz(num)
    @given(LINES, st.sampled_from(",;\t "), st.sampled_from(["\n", "\r\n", "\r"]))
    def holds(lines: list[list[str]], sep: str, end: str) -> None:
        file.write_text(end.join(sep.join(line) for line in lines), "utf-8", newline="")
        table = points_or_one_line(file)
        if table is not None:
            rows = sum(bool(sep.join(line).strip()) for line in lines)
            assert len(table.values) in (rows, rows - 1)

    holds()


@NUMBERS
@pytest.mark.parametrize("ending", ENDINGS)
def test_damaged_files_are_refused(tmp_path: Path, ending: str, num: int):
    whole, file = written(tmp_path, ending), tmp_path / f"damaged{ending}"
    place = st.integers(0, len(whole) - 1)

    @fuzz(num // 5)
    @given(st.lists(st.tuples(place, st.integers(0, 255)), max_size=4), place, st.booleans())
    def holds(changes: list[tuple[int, int]], end: int, cut: bool) -> None:
        content = bytearray(whole)
        for at, byte in changes:
            content[at] = byte
        file.write_bytes(content[:end] if cut else content)
        points_or_one_line(file)

    holds()


def written(folder: Path, ending: str) -> bytes:
    """A good file."""
    values, stream = np.arange(12.0).reshape(6, 2) ** 2, io.BytesIO()
    frame = pd.DataFrame(values, columns=["x", "y"])
    if ending == ".parquet":
        frame.to_parquet(stream)
    elif ending == ".npy":
        np.save(stream, values)
    elif ending == ".npz":
        np.savez_compressed(stream, values)
    else:
        text = frame.to_csv(index=False).encode()
        stream.write(gzip.compress(text) if ending == ".csv.gz" else text)
    (folder / f"whole{ending}").write_bytes(stream.getvalue())
    assert len(read_points(DataConfig(path=str(folder / f"whole{ending}"))).values) == 6
    return stream.getvalue()
