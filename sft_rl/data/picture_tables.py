"""Pictures in tables: .parquet and .arrow files, of Hugging Face `datasets` or any other writer.

Bytes come out of the table only: a path or URL in a row is never opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sft_rl.config import DataConfig
from sft_rl.data.columns import NumberTable, chosen
from sft_rl.data.picture_files import Encoded, Pictures
from sft_rl.errors import UserError, did_you_mean

Array = np.ndarray
ENDINGS = (".parquet", ".arrow")
BATCH = 64
"""Rows that are held at once."""
LABEL_NAMES = ("label", "labels", "class", "target", "fine_label")
SPLIT = re.compile(r"(?:^|[/._-])(train|test|validation|valid|val|dev|eval)(?=[/._-]|$)")


@dataclass(frozen=True)
class _Columns:
    """The columns of a table that are read.

    Attributes:
        picture: The one with pictures.
        label: The one with classes, or None.
        classes: Names of the classes, where the table has them.
    """

    picture: str
    label: str | None
    classes: tuple[str, ...] | None


def pictures_of_tables(root: Path, files: list[Path], config: DataConfig) -> Pictures:
    """Take the pictures of some tables; of several splits the training rows.

    Args:
        root: What the files are below.
        files: Tables of the same columns.
        config: Names of the columns of pictures and of labels, which are found if there are none,
            of texts that stand for labels, and of numbers in their place.

    Raises:
        UserError: If the columns, the split or the labels cannot be made out.
    """
    files, notes = _one_split(root, _listed(files))
    source = f"data.path: {files[0] if len(files) == 1 else root}"
    schema, given = _schema(files[0]), None
    columns = _columns(schema, config.columns, source)
    if config.captions is not None:
        columns = _captioned(columns, schema, config.captions)
    if config.condition_columns is not None:
        columns = _unlabelled(columns, config)
        given = _given(files, config.condition_columns, schema, source)
        notes["conditional on"] = ", ".join(given.names)
    notes["column of pictures"] = columns.picture
    num = sum(_num_rows(file) for file in files)
    labels, classes = None, columns.classes or ()
    if columns.label is not None:
        values = np.concatenate([_labels(file, columns.label) for file in files])
        labels, classes = _numbered(values, columns, source)
        notes["column of classes"] = columns.label
    return Pictures(num, partial(_read, files, columns.picture), labels, classes, notes, given)


def _listed(files: list[Path]) -> list[Path]:
    """Leave out what `datasets` keeps beside a table of its own, such as results of a map."""
    kept = []
    for file in files:
        state = file.with_name("state.json")
        if file.suffix == ".arrow" and state.is_file():
            names = {entry["filename"] for entry in json.loads(state.read_bytes())["_data_files"]}
            if file.name not in names:
                continue
        kept.append(file)
    return kept


def _one_split(root: Path, files: list[Path]) -> tuple[list[Path], dict[str, str]]:
    """Choose the files of the training split, where files say what split they are."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        found = SPLIT.search(file.relative_to(root).as_posix().lower())
        splits.setdefault(found[1] if found else "", []).append(file)
    if len(splits) == 1:
        return files, {}
    if "train" not in splits:
        raise UserError(f"data.path: {root} has tables of {', '.join(map(repr, splits))}; name one")
    left = [
        f"{len(part)} of {name or 'no'} split" for name, part in splits.items() if name != "train"
    ]
    return splits["train"], {"left out": f"tables: {', '.join(left)}"}


def _columns(schema: Any, wanted: tuple[str, ...] | None, source: str) -> _Columns:
    """Find the columns of pictures and of classes."""
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = described.get("info", {}).get("features", {})
    kinds = {name: kind.get("_type") for name, kind in features.items() if isinstance(kind, dict)}
    if wanted is not None:
        if len(wanted) > 2:
            raise UserError(f"data.columns: one of pictures and one of labels, got {len(wanted)}")
        names = [schema.names[i] for i in chosen(schema.names, wanted, source)]
        picture, label = names[0], names[1] if len(names) > 1 else None
    else:
        images = [name for name in schema.names if kinds.get(name) == "Image"]
        images = images or [field.name for field in schema if _holds_bytes(field.type)]
        if len(images) != 1:
            found = f"columns {', '.join(images)} may all hold" if images else "no column holds"
            raise UserError(
                f"{source}: {found} images; it has {', '.join(schema.names)}: "
                "data.columns=[PICTURE,LABEL] says which"
            )
        labelled = [name for name in schema.names if kinds.get(name) == "ClassLabel"]
        labelled += [
            n for n in LABEL_NAMES if n in schema.names and _may_label(schema.field(n).type)
        ]
        picture, label = images[0], labelled[0] if labelled else None
    if not _holds_bytes(schema.field(picture).type):
        raise UserError(
            f"{source}: column {picture!r} holds {schema.field(picture).type}, no images"
        )
    classes = features[label].get("names") if kinds.get(label) == "ClassLabel" else None
    return _Columns(picture, label, tuple(classes) if classes else None)


def _captioned(columns: _Columns, schema: Any, captions: str) -> _Columns:
    """Take a column of texts for the classes."""
    import pyarrow.types as types

    kind = schema.field(captions).type if captions in schema.names else None
    if kind is None or not (types.is_string(kind) or types.is_large_string(kind)):
        raise UserError(
            f"data.captions: no column of texts is called {captions!r}; the table has "
            f"{', '.join(schema.names)}"
        )
    return _Columns(columns.picture, captions, None)


def _unlabelled(columns: _Columns, config: DataConfig) -> _Columns:
    """Leave labels out, which the numbers stand for."""
    if config.captions is not None or len(config.columns or ()) > 1:
        raise UserError(
            "data.condition_columns: stand in the place of labels and captions; leave out "
            "data.captions, and the second of data.columns"
        )
    return _Columns(columns.picture, None, None)


def _given(files: list[Path], names: tuple[str, ...], schema: Any, source: str) -> NumberTable:
    """Read the columns of numbers that pictures are conditional on."""
    columns = []
    for name in names:
        if name not in schema.names:
            hint = did_you_mean(name, schema.names)
            raise UserError(f"data.condition_columns: {source} has no {name!r}; {hint}")
        if not _are_numbers(kind := schema.field(name).type):
            raise UserError(f"{source}: column {name!r} holds {kind}, no numbers")
        cells = np.concatenate([_labels(file, name) for file in files])
        values = cells.astype(np.float64)  # None is nan
        if not np.isfinite(values).all():
            row = (~np.isfinite(values)).argmax()
            raise UserError(f"{source}: row {row} has {cells[row]} in column {name!r}")
        columns.append(values)
    return NumberTable(names, np.stack(columns, axis=1))


def _holds_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _are_numbers(kind: Any) -> bool:
    import pyarrow.types as types

    tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    return any(test(kind) for test in tests)


def _may_label(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return any(test(kind) for test in (types.is_integer, types.is_string, types.is_large_string))


def _numbered(
    values: Array, columns: _Columns, source: str
) -> tuple[Array | None, tuple[str, ...]]:
    """Turn labels into numbers from 0, and name their classes."""
    missing = np.array([value is None for value in values])
    if missing.any():
        row = missing.argmax()
        raise UserError(f"{source}: row {row} has no label in column {columns.label!r}")
    if columns.classes is None:
        names, index = np.unique(values.astype(type(values[0])), return_inverse=True)
        return index.astype(np.int64), tuple(str(name) for name in names)
    labels = values.astype(np.int64)
    if (labels == -1).all():  # what `datasets` writes where labels are kept back
        return None, ()
    odd = (labels < 0) | (labels >= len(columns.classes))
    if odd.any():
        row = odd.argmax()
        raise UserError(
            f"{source}: row {row} has the label {labels[row]} in column {columns.label!r}, which "
            f"has {len(columns.classes)} classes"
        )
    return labels, columns.classes


def _read(files: list[Path], column: str) -> Encoded:
    number = 0
    for file in files:
        for batch in _batches(file, column):
            for cell in batch:
                name = f"row {number} of {file}"
                yield name, _bytes_of(cell, name)
                number += 1


def _bytes_of(cell: Any, name: str) -> bytes:
    content = cell["bytes"] if isinstance(cell, dict) else cell
    if content is not None:
        return bytes(content)
    path = cell.get("path") if isinstance(cell, dict) else None
    if path is None:
        raise UserError(f"data.path: {name} has no picture")
    raise UserError(
        f"data.path: {name} has no bytes but a path, {path!r}, which is never opened; write "
        "pictures into the table"
    )


def _batches(file: Path, column: str) -> Iterator[list[Any]]:
    """Cells of a column, few at once."""
    import pyarrow.parquet as pq

    if file.suffix == ".parquet":
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(BATCH, columns=[column]):
                yield batch.column(0).to_pylist()
        return
    for batch in _arrow(file):
        cells = batch.column(batch.schema.get_field_index(column))
        for start in range(0, len(cells), BATCH):
            yield cells.slice(start, BATCH).to_pylist()


def _arrow(file: Path) -> Any:
    """Batches of an Arrow stream or file, mapped into memory."""
    import pyarrow as pa

    source = pa.memory_map(str(file))
    try:
        return pa.ipc.open_stream(source)
    except pa.ArrowInvalid:
        table = pa.ipc.open_file(source)
        return pa.RecordBatchReader.from_batches(
            table.schema, (table.get_batch(i) for i in range(table.num_record_batches))
        )


def _schema(file: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_schema(file) if file.suffix == ".parquet" else _arrow(file).schema


def _num_rows(file: Path) -> int:
    import pyarrow.parquet as pq

    if file.suffix == ".parquet":
        return int(pq.read_metadata(file).num_rows)
    return sum(batch.num_rows for batch in _arrow(file))


def _labels(file: Path, column: str) -> Array:
    """Values of a column of labels, as objects, None where there is none."""
    cells = [cell for batch in _batches(file, column) for cell in batch]
    values = np.empty(len(cells), dtype=object)
    values[:] = cells
    return values
