"""Any file of points at its reader: its points to the last bit, or one line; never other points."""

from __future__ import annotations

import gzip
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sft_rl.config import DataConfig
from sft_rl.data.columns import NumberTable
from sft_rl.data.point_files import ENDINGS, read_points
from sft_rl.errors import UserError

Array = np.ndarray
KINDS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe", " ": "space"}
WORDS = [*"xy01?;#é", "", '"', "\t", "\x0b", "-2.5", "1,5", "1e3", "nan", "a b"]
TABLES = st.tuples(
    arrays(
        np.float64,
        st.tuples(st.integers(1, 6), st.integers(1, 4)),
        elements=st.floats(allow_nan=False, allow_infinity=False) | st.integers(-3, 3).map(float),
    ),
    st.sampled_from(list(KINDS)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
"""Numbers, separator, and whether they have decimal commas, names above and an index before."""
TEXTS = st.tuples(
    st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4), max_size=5),
    st.sampled_from(",;\t "),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
"""Lines of words, what is between words, and what between lines."""
PLACES = st.floats(0, 1, exclude_max=True)
DAMAGES = st.tuples(
    st.sampled_from(ENDINGS),
    st.lists(st.tuples(PLACES, st.integers(0, 255)), max_size=4),
    PLACES | st.none(),
)
"""The ending of a file, bytes at some places, and where it is cut."""


def read_table(case: tuple[Array, str, bool, bool, bool]) -> None:
    """Read what pandas writes; what is refused, or read as a table of another shape, is settled."""
    values, separator, comma, header, index = case
    comma = comma and separator != ","
    frame = pd.DataFrame(values).add_prefix("x")
    decimal = "," if comma else "."
    with _a_file(".csv") as file:
        frame.to_csv(file, sep=separator, decimal=decimal, header=header, index=index)
        found = _points_or_one_line(file)
        if found is None or found.values.shape != values.shape:
            names = list(frame) if header else [str(i + index) for i in range(values.shape[1])]
            shape = None if found is None else found.values.shape
            settled = {"separator": KINDS[separator], "header": header, "columns": names}
            found = _points_or_one_line(file, **settled)
            assert found is not None
            # Nothing tells one number with a decimal comma from two with a comma between.
            assert shape is None or (comma and values.shape[1] == 1 and not header)
        np.testing.assert_array_equal(found.values, values)


def read_lines(case: tuple[list[list[str]], str, str]) -> None:
    """Read lines of words as a table, whole or not at all."""
    lines, separator, end = case
    with _a_file(".csv") as file:
        file.write_text(end.join(separator.join(line) for line in lines), "utf-8", newline="")
        if (table := _points_or_one_line(file)) is not None:
            rows = sum(bool(separator.join(line).strip()) for line in lines)
            assert len(table.values) in (rows, rows - 1)


def read_damaged(case: tuple[str, list[tuple[float, int]], float | None]) -> None:
    """Read a good file of any kind with some bytes changed, or cut."""
    ending, changes, end = case
    content = bytearray(_good(ending))
    for place, byte in changes:
        content[int(place * len(content))] = byte
    with _a_file(ending) as file:
        file.write_bytes(content if end is None else content[: int(end * len(content))])
        _points_or_one_line(file)


@contextmanager
def _a_file(ending: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / f"points{ending}"


def _points_or_one_line(file: Path, **options: object) -> NumberTable | None:
    try:
        table = read_points(DataConfig.model_validate({"path": str(file), **options}))
    except UserError as error:
        assert str(error).startswith("data."), str(error)
        assert len(str(error).splitlines()) == 1, str(error)
        return None
    assert table.values.dtype == np.float64
    assert np.isfinite(table.values).all()
    assert table.values.shape[1] == len(table.names)
    return table


@cache
def _good(ending: str) -> bytes:
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
    with _a_file(ending) as file:
        file.write_bytes(stream.getvalue())
        read = _points_or_one_line(file)
        assert read is not None and len(read.values) == 6
    return stream.getvalue()
