"""Run folders on storage with a URL: copied while the run goes on, whole at the end."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import send_folder
from cluster.fetch import Receiver
from cluster.mirror import Mirror
from sft_rl import checkpoint
from sft_rl.errors import UserError


def start(url: str, *settings: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "cluster.mirror", url, "train", "swiss_roll", *settings]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_run_that_is_stopped_is_on_the_storage_with_its_checkpoint(tmp_path, tiny_settings):
    url = f"file://{tmp_path}/bucket/first"
    process = start(url, *tiny_settings, "training.num_iterations=1000000")
    for line in process.stdout:
        if line.startswith("fine-tuning "):
            break
    process.send_signal(signal.SIGTERM)
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        subprocess.run(["kill", pid], check=True)  # Ray stops a job's whole process group
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    folder = tmp_path / "bucket" / "first"
    newest = max((folder / "checkpoints").iterdir(), key=lambda path: path.name)
    assert checkpoint.load(newest).meta["iteration"] == int(newest.name)

    sender = [sys.executable, send_folder.__file__, url]
    sent = subprocess.run(sender, capture_output=True, text=True, check=True).stdout
    (tmp_path / "fetched").mkdir()
    receiver = Receiver(tmp_path / "fetched")
    receiver.feed(sent)
    receiver.check_whole()
    files = {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
    assert {Path("config.yaml"), Path("metrics.csv")} <= files
    assert receiver.num_files == len(files)


def test_only_changes_are_copied_and_what_is_gone_is_deleted(tmp_path):
    source, place = tmp_path / "run", tmp_path / "storage"
    mirror = Mirror(source, f"file://{place}")
    mirror.update()
    (source / "checkpoints" / "1").mkdir(parents=True)
    (source / "metrics.csv").write_text("a")
    (source / "checkpoints" / "1" / "x").write_text("b")
    (source / ".half.tmp").write_text("c")
    mirror.update()
    copied = {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()}
    assert copied == {"metrics.csv", "checkpoints/1/x"}
    (place / "metrics.csv").write_text("untouched")
    (source / "checkpoints" / "1" / "x").unlink()
    mirror.update()
    assert (place / "metrics.csv").read_text() == "untouched"
    assert not (place / "checkpoints" / "1" / "x").exists()
    (source / "metrics.csv").write_text("longer")
    mirror.update()
    assert (place / "metrics.csv").read_text() == "longer"


def test_storage_that_is_taken_or_cannot_be_written_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").write_text("mine")
    for place, said in (
        (f"{tmp_path}/taken", "already holds something"),
        ("/proc/x", "cannot write"),
    ):
        process = start(f"file://{place}")
        out, errors = process.communicate()
        assert (process.returncode, out) == (2, "")
        assert said in errors and errors.count("\n") == 1
    with pytest.raises(UserError, match="cannot write to s4://x"):
        Mirror(tmp_path, "s4://x")


def test_a_folder_that_is_not_on_the_storage_is_said_to_be_missing(tmp_path):
    sender = [sys.executable, send_folder.__file__, f"file://{tmp_path}/none"]
    sent = subprocess.run(sender, capture_output=True, text=True, check=True).stdout
    assert "none" in json.loads(sent)["error"]
