"""Run folders, on a node or on storage with a URL, brought back as the text of a log."""

import base64
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cluster import ANSWER
from cluster.connection import ClusterError
from cluster.jobs import unpack

CONTENTS = {"metrics.csv": b"a,b\n1,2\n", "checkpoints/1/policy": bytes(range(256)) * 100}


def sent(place: str) -> "subprocess.CompletedProcess[str]":
    sender = [sys.executable, "-m", "cluster.send_folder", place]
    return subprocess.run(sender, capture_output=True, text=True)


def zipped(*names: str) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        for name in names:
            files.writestr(name, b"content")
    return archive.getvalue()


@pytest.mark.parametrize("scheme", ["", "file://", "local://"], ids=["path", "Arrow", "fsspec"])
def test_a_folder_comes_back_whole(tmp_path: Path, scheme: str):
    source = tmp_path / "runs" / "first"
    for name, content in CONTENTS.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    if not scheme:  # object stores have no links
        (source / "link").symlink_to("/etc/passwd")
    lines = sent(f"{scheme}{source}").stdout.splitlines()
    archive = b"".join(base64.b64decode(line.removeprefix(ANSWER)) for line in lines)
    folder = tmp_path / "fetched"
    assert unpack(io.BytesIO(archive), folder) == len(CONTENTS)
    there = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    assert {name: path.read_bytes() for name, path in there.items()} == CONTENTS


@pytest.mark.parametrize("place", ["/none", "file:///none", "nosuch://none"])
def test_a_folder_that_is_not_there_is_said_to_be_missing(place: str):
    done = sent(place)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(place)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/../../x", "checkpoints/../../../x"])
def test_no_file_leaves_the_folder(tmp_path: Path, name: str):
    unpack(io.BytesIO(zipped(name)), tmp_path / "inside")
    (file,) = (p for p in tmp_path.rglob("*") if p.is_file())
    assert file.is_relative_to(tmp_path / "inside")


@pytest.mark.parametrize(
    "archive",
    [zipped("a", "b")[:-30], zipped("a").replace(b"content", b"contend"), b"Traceback"],
    ids=["cut", "damaged", "something else"],
)
def test_a_copy_that_is_not_whole_is_refused(tmp_path: Path, archive: bytes):
    with pytest.raises(ClusterError, match="did not arrive whole"):
        unpack(io.BytesIO(archive), tmp_path / "fetched")
