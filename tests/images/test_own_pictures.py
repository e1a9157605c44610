"""Pictures as people keep them: folders, zip files and tables."""

import io
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import encoded, everything, load, put
from PIL import Image

from sft_rl.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")


def test_every_picture_is_read_whatever_its_name(tmp_path: Path):
    root = tmp_path / "my [own] pictures"
    for name in ("img_train_1.png", "test_1.png", "validation-2.PNG", "a b#c.png", "é.png"):
        put(root / name)
    put(root / "photo.jpg", encoded(kind="jpeg"))
    put(root / ".hidden.png")
    (root / "metadata.csv").write_text("file_name,text\ntest_1.png,a cat\n")
    (root / "notes.txt").write_text("x")
    os.mkfifo(root / "pipe.png")
    assert load(root).description == {
        "images": "6, 2 held out",
        "left out": "metadata.csv, notes.txt: no pictures",
    }


def test_folders_are_classes_whatever_they_are_called(tmp_path: Path):
    root = tmp_path / "root"
    for name, num in (("test", 3), ("train", 4), ("validation", 2)):
        for i in range(num):
            put(root / name / f"{i}.png")
    for i in range(5):
        put(tmp_path / "elsewhere" / f"{i}.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "train" / "back").symlink_to(root)  # a circle
    data = load(root)
    assert data.description["classes"] == "linked: 5, test: 3, train: 4, validation: 2"
    assert len(data.labels) + len(data.held_out_labels) == 14
    put(root / "one more.png")
    assert load(root).description["classes"] == "none: pictures lie at different depths"
    assert load(root).labels is None


def test_zip_files_are_read_without_unpacking(tmp_path: Path):
    pictures = {f"{name}/{i}.png": encoded() for name in ("cats", "dogs") for i in range(3)}
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for name, content in pictures.items():
            archive.writestr(f"photos/{name}", content)
        archive.writestr("__MACOSX/photos/cats/._0.png", b"x")
        archive.writestr("../../outside.txt", b"x")
    for name, content in pictures.items():
        put(tmp_path / "folder" / name, content)
    zipped, plain = load(tmp_path / "pictures.zip"), load(tmp_path / "folder")
    np.testing.assert_array_equal(everything(zipped), everything(plain))
    assert zipped.description == plain.description
    assert zipped.description["classes"] == "cats: 3, dogs: 3"
    for content in (b"PK", (tmp_path / "pictures.zip").read_bytes()[:-30]):
        with pytest.raises(UserError, match=r"^data.path: cannot read .*broken.zip"):
            load(put(tmp_path / "broken.zip", content))


def write_table(file: Path, column: Any, labels: Any = None, name: str = "label", **options: Any):
    columns = {"image": column} | ({} if labels is None else {name: labels})
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if options:
        table = table.replace_schema_metadata({b"huggingface": options["hf"]})
    pq.write_table(table, file)
    return file


def test_tables_of_any_writer(tmp_path: Path):
    pictures = [encoded() for _ in range(6)]
    expected = {
        np.asarray(Image.open(io.BytesIO(p))).transpose(2, 0, 1).tobytes() for p in pictures
    }
    structs = [{"bytes": p, "path": None} for p in pictures]
    for kind, column in (
        ("plain", pictures),
        ("large", pa.array(pictures, pa.large_binary())),
        ("structs", structs),
    ):
        data = load(write_table(tmp_path / f"{kind}.parquet", column))
        assert {image.tobytes() for image in everything(data)} == expected
        assert data.labels is None
    for labels, name, said in (
        ([3, 7, 3, 7, 7, 7], "label", "3: 2, 7: 4"),
        (["cat", "dog", "cat", "dog", "dog", "dog"], "class", "cat: 2, dog: 4"),
    ):
        data = load(write_table(tmp_path / "labelled.parquet", pictures, labels, name))
        assert data.description["classes"] == said
        assert sorted([*data.labels.tolist(), *data.held_out_labels.tolist()]) == [0, 0, 1, 1, 1, 1]
    file = write_table(tmp_path / "named.parquet", pictures, list("aabbbb"), "breed")
    assert load(file).labels is None
    assert load(file, columns=["image", "breed"]).description["classes"] == "a: 2, b: 4"
    both = pa.table({"left": pictures, "right": pictures[::-1]})
    pq.write_table(both, tmp_path / "both.parquet")
    with pytest.raises(UserError, match=r"left, right may all hold .*data.columns="):
        load(tmp_path / "both.parquet")
    assert load(tmp_path / "both.parquet", columns=["right"]).description["images"].startswith("6")


BAD: dict[str, tuple[Callable[[list[bytes]], Any], Any, str]] = {
    "no picture": (lambda p: [*p[:5], None], None, "row 5 of .* has no picture"),
    "no bytes": (
        lambda p: [*({"bytes": one, "path": None} for one in p[:5]), {"bytes": None, "path": None}],
        None,
        "row 5 of .* has no picture",
    ),
    "no label": (lambda p: p, [1, 0, None, 1, 1, 1], "row 2 has no label"),
}


@pytest.mark.parametrize("name", BAD)
def test_holes_in_tables_are_named(tmp_path: Path, name: str):
    column, labels, words = BAD[name]
    pictures = [encoded() for _ in range(6)]
    with pytest.raises(UserError, match=words):
        load(write_table(tmp_path / "bad.parquet", column(pictures), labels))


def test_labels_of_datasets_that_are_none(tmp_path: Path):
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    )
    pictures = [Image.open(io.BytesIO(encoded())) for _ in range(6)]
    for labels, words in (([-1] * 6, ""), ([0, 1, -1, 1, 1, 1], "row 2 has the label -1")):
        table = datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)
        table.to_parquet(tmp_path / "kept.parquet")
        if words:
            with pytest.raises(UserError, match=words):
                load(tmp_path / "kept.parquet")
        else:
            assert load(tmp_path / "kept.parquet").labels is None


@pytest.mark.parametrize("place", ["http", "file", "relative", "absolute"])
def test_a_row_opens_nothing_outside_its_table(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
):
    secret = put(tmp_path / "secret.png")
    put(tmp_path / "pictures" / "own.png")
    path = {
        "http": "http://127.0.0.1:9/a.png",
        "file": f"file://{secret}",
        "relative": "own.png",
        "absolute": str(secret),
    }[place]
    rows = [{"bytes": encoded(), "path": None} for _ in range(4)] + [{"bytes": None, "path": path}]
    opened: list[str] = []
    sys.addaudithook(
        lambda event, args: (
            opened.append(f"{event} {args[0]}")
            if event in ("socket.connect", "socket.getaddrinfo")
            or (event == "open" and str(args[0]).endswith(".png"))
            else None
        )
    )
    file = write_table(tmp_path / "tables" / "rows.parquet", rows)
    opened.clear()
    with pytest.raises(UserError, match=r"row 4 of .* which is never opened"):
        load(file)
    assert opened == []


def test_of_several_splits_the_training_rows_are_read(tmp_path: Path):
    root = tmp_path / "data"
    for split, num in (("train", 3), ("test", 5)):
        for part in range(2):
            name = f"{split}-0000{part}-of-00002.parquet"
            write_table(root / name, [encoded() for _ in range(num)])
    data = load(root)
    assert data.description["images"] == "6, 2 held out"
    assert data.description["left out"] == "tables: 2 of test split"
    assert load(root / "test-00000-of-00002.parquet").description["images"].startswith("5")
    saved = tmp_path / "saved"
    features = datasets.Features({"image": datasets.Image()})
    table = datasets.Dataset.from_dict(
        {"image": [Image.open(io.BytesIO(encoded())) for _ in range(5)]}, features=features
    )
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(saved)
    (arrow,) = (saved / "train").glob("*.arrow")
    arrow.with_name("cache-0123.arrow").write_bytes(arrow.read_bytes())  # of a map, left there
    assert load(saved).description["images"].startswith("5,")
    put(root / "a.png")
    with pytest.raises(UserError, match="1 pictures and 4 tables; name one"):
        load(root)
