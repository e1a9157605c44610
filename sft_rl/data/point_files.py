"""A user's points: files of arrays and tables, frames and arrays in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sft_rl.config import DataConfig
from sft_rl.data.columns import NumberTable, chosen, without_index
from sft_rl.data.csv_files import read_csv
from sft_rl.errors import UserError

Array = np.ndarray
PANDAS_INDEX = "__index_level_0__"
"""The column of parquet that pandas writes an index without a name to."""
ENDINGS = (".npy", ".npz", ".csv", ".csv.gz", ".parquet")


def read_points(config: DataConfig) -> NumberTable:
    """Read the table of numbers at `data.path`, one point a row.

    Raises:
        UserError: If the file is missing, unreadable, empty, not finite or not a table.
    """
    file = Path(config.path or "")
    source = f"data.path: {file}"
    if not file.is_file():
        raise UserError(f"data.path: no file at {file}")
    try:
        return _checked(_read(file, config), config, source)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes its parser raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"data.path: cannot read {file}: {reason[0]}") from error


def table_of(values: Any, config: DataConfig, source: str = "data: it") -> NumberTable:
    """Take points (N, dim) from memory: an array, or a data frame of pandas or another library.

    Args:
        values: The points.
        config: Which columns are read.
        source: Where they came from, the beginning of an error.

    Raises:
        UserError: If they are not finite or not a table of numbers.
    """
    if not hasattr(values, "__arrow_c_stream__"):
        return _checked(
            _of_array(np.asarray(values), config, source), config, source, has_index=False
        )
    import pyarrow as pa

    try:
        table = pa.table(values)
    except pa.ArrowException as error:  # columns of mixed types
        raise UserError(f"{source} is no table of numbers: {error.args[0]}") from error
    return _checked(_of_arrow(table, config, source), config, source)


def _read(file: Path, config: DataConfig) -> NumberTable:
    name, source = file.name.lower(), f"data.path: {file}"
    if name.endswith((".csv", ".csv.gz")):
        return read_csv(file, config)
    if name.endswith(".npy"):
        return _of_array(np.load(file, allow_pickle=False), config, source)
    if name.endswith(".npz"):
        with np.load(file, allow_pickle=False) as arrays:
            return _of_arrays(dict(arrays), config, source)
    if name.endswith(".parquet"):
        import pyarrow.parquet as pq

        return _of_arrow(pq.ParquetFile(file), config, source)
    raise UserError(f"{source} ends in {file.suffix!r}, expected one of {', '.join(ENDINGS)}")


def _of_array(array: Array, config: DataConfig, source: str) -> NumberTable:
    """Take a matrix, or a row of records whose fields have names."""
    if array.dtype.names:
        return _of_columns({name: array[name] for name in array.dtype.names}, config, source)
    if array.ndim != 2 or 0 in array.shape:
        raise UserError(f"{source} has shape {array.shape}, expected (rows, dimensions), not empty")
    names = [str(i) for i in range(array.shape[1])]
    columns = chosen(names, config.columns, source)
    values = _floats(array, source)
    if config.columns is not None:
        values = values[:, columns]
    return NumberTable(tuple(names[i] for i in columns), values)


def _of_arrays(arrays: dict[str, Array], config: DataConfig, source: str) -> NumberTable:
    """Take the arrays of an .npz file: one matrix, or columns by name."""
    if config.columns is not None:
        arrays = {
            n: arrays[n]
            for n in (list(arrays)[i] for i in chosen(list(arrays), config.columns, source))
        }
    if len(arrays) == 1:
        (array,) = arrays.values()
        return _of_array(array, config.model_copy(update={"columns": None}), source)
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) == 1 and len(*shapes) == 1:
        return _of_columns(arrays, config, source)
    found = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
    raise UserError(
        f"{source} holds {found or 'no array'}; data.columns=[NAME] says which are the points"
    )


def _of_columns(columns: dict[str, Array], config: DataConfig, source: str) -> NumberTable:
    """Put columns of one length side by side."""
    names = list(columns)
    names = [names[i] for i in chosen(names, config.columns, source)]
    values = [_floats(columns[name], f"{source}: column {name!r}") for name in names]
    return NumberTable(tuple(names), np.stack(values, axis=1))


def _of_arrow(table: Any, config: DataConfig, source: str) -> NumberTable:
    """Take the columns of a table of Arrow, or of a parquet file, which is read only now."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    is_file = isinstance(table, pq.ParquetFile)
    schema = table.schema_arrow if is_file else table.schema
    names = [schema.names[i] for i in chosen(schema.names, config.columns, source)]
    notes = {}
    if config.columns is None and PANDAS_INDEX in names:
        names.remove(PANDAS_INDEX)
        notes["left out"] = "the index, which has no name"
    for name in names:
        kind, types = schema.field(name).type, pa.types
        if not (
            types.is_boolean(kind)
            or types.is_integer(kind)
            or types.is_floating(kind)
            or types.is_decimal(kind)
        ):
            raise UserError(
                f"{source}: column {name!r} holds {kind}, expected real numbers; data.columns "
                "chooses columns"
            )
    table = table.read(columns=names) if is_file else table
    values = np.empty((table.num_rows, len(names)))
    for i, name in enumerate(names):
        # Whole numbers beyond 2^53 are rounded, as in every float64.
        values[:, i] = table[name].cast(pa.float64(), safe=False).to_numpy()
    return NumberTable(tuple(names), values, notes)


def _floats(array: Array, source: str) -> Array:
    """Turn real numbers into float64.

    Raises:
        UserError: If they are anything else.
    """
    if array.dtype.kind not in "biuf":
        raise UserError(f"{source} holds {array.dtype}, expected real numbers")
    return array.astype(np.float64)


def _checked(
    table: NumberTable, config: DataConfig, source: str, *, has_index: bool = True
) -> NumberTable:
    """Refuse what is empty or not finite, and leave an index out.

    Raises:
        UserError: Naming the place.
    """
    if 0 in table.values.shape:
        raise UserError(
            f"{source} has shape {table.values.shape}, expected (rows, dimensions), not empty"
        )
    bad = ~np.isfinite(table.values)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise UserError(
            f"{source} has {bad.sum()} values that are missing or not finite, "
            f"the first in row {row}, column {table.names[column]!r}"
        )
    if config.columns is None and has_index:
        table = without_index(table, source)
    return table
