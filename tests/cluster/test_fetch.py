"""Run folders on storage with a URL, brought back."""

import json
import subprocess
import sys
from pathlib import Path

from cluster import send_folder
from cluster.fetch import Receiver


def sent(url: str) -> str:
    sender = [sys.executable, send_folder.__file__, url]
    return subprocess.run(sender, capture_output=True, text=True, check=True).stdout


def test_a_folder_on_the_storage_comes_back_whole(tmp_path: Path):
    source, target = tmp_path / "bucket" / "first", tmp_path / "fetched"
    (source / "checkpoints" / "1").mkdir(parents=True)
    target.mkdir()
    contents = {"metrics.csv": b"a,b\n1,2\n", "checkpoints/1/policy": bytes(range(256)) * 100}
    for name, content in contents.items():
        (source / name).write_bytes(content)
    receiver = Receiver(target)
    receiver.feed(sent(source.as_uri()))
    receiver.check_whole()
    assert receiver.num_files == len(contents)
    for name, content in contents.items():
        assert (target / name).read_bytes() == content


def test_a_folder_that_is_not_on_the_storage_is_said_to_be_missing(tmp_path: Path):
    assert "none" in json.loads(sent(f"file://{tmp_path}/none"))["error"]
