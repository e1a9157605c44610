"""Run folders at URLs: what goes up is whole, and a run goes on from there."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pandas as pd
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from processes import MORTAL, PROCESSES, interrupt

from sft_rl.cli import main
from sft_rl.errors import UserError
from sft_rl.runs.remote import open_run
from sft_rl.storage.files import SaveError
from sft_rl.storage.urls import Remote

pytestmark = PROCESSES


class Bucket(MemoryFileSystem):
    """An object store in this process: no folders of its own, no renaming, whole objects.

    Under its own scheme, since the command line refuses memory:// as what does not last.
    """

    protocol = "bucket"
    store: ClassVar[dict[str, Any]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("bucket://", "memory://")))


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    store = fsspec.filesystem("bucket")
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


def objects(store: fsspec.AbstractFileSystem) -> dict[str, bytes]:
    return {name: store.cat(name) for name in store.find("/runs")}


def train(url: str, *settings: str) -> int:
    return main(["train", "swiss_roll", *settings, "--out", url, "--resume", "auto"])


def test_a_run_in_an_object_store(
    tmp_path: Path,
    tiny_settings: tuple[str, ...],
    memory: fsspec.AbstractFileSystem,
    capsys: pytest.CaptureFixture[str],
):
    url = "bucket://runs/a"
    short = (*tiny_settings, "training.num_iterations=2")
    assert train(url, *short) == 0
    assert train(url, *tiny_settings, "training.plots=true") == 0  # goes on to 3
    names = {Path(name).relative_to("/runs/a").parts[0] for name in objects(memory)}
    parts = {"config.yaml", "metrics.csv", "summary.json", "checkpoints", "plots", "tensorboard"}
    assert names == parts
    assert len(memory.find("/runs/a/tensorboard")) == 2  # one of each process
    assert {Path(n).parent.name for n in memory.find("/runs/a/checkpoints")} == {"000002", "000003"}
    rows = pd.read_csv(memory.open("/runs/a/metrics.csv"))
    assert rows["iteration"].tolist() == [1, 2, 3]
    before = objects(memory)
    assert train(url, *tiny_settings) == 0
    assert f"{url} is finished, nothing to do" in capsys.readouterr().out
    final = json.loads(before["/runs/a/summary.json"])["sliced_wasserstein_final"]
    assert main(["evaluate", url]) == 0
    assert f"{final:.4f}" in capsys.readouterr().out
    assert main(["sample", url, "--num", "5", "--out", str(tmp_path / "samples.csv")]) == 0
    assert len(pd.read_csv(tmp_path / "samples.csv", header=None)) >= 5
    assert objects(memory) == before


def test_what_went_up_in_part_is_no_checkpoint(
    tiny_settings: tuple[str, ...],
    memory: fsspec.AbstractFileSystem,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    url = "bucket://runs/b"
    assert train(url, *tiny_settings) == 0
    whole = objects(memory)
    memory.rm("/runs/b/checkpoints/000003/manifest.json")  # it goes up last
    memory.rm("/runs/b/summary.json")
    capsys.readouterr()
    assert open_run(url).place == url
    assert train(url, *tiny_settings) == 0
    assert "000003 is not whole" in " ".join(capsys.readouterr().out.split())
    ours, theirs = (json.loads(o["/runs/b/summary.json"]) for o in (objects(memory), whole))
    assert ours["policy_sha256"] == theirs["policy_sha256"]


def test_an_upload_that_fails_says_so(memory: fsspec.AbstractFileSystem, tmp_path: Path):
    memory.pipe("/runs/c", b"a file where the folder should be")
    (tmp_path / "config.yaml").write_text("seed: 0")
    with pytest.raises(SaveError, match=r"cannot save bucket://runs/c/config.yaml: .*7 bytes"):
        Remote("bucket://runs/c").upload(tmp_path, "config.yaml")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nosuch://a/b", "cannot use nosuch://a/b: Protocol not known"),
        ("s3://key:secret@bucket/run", "credentials"),
    ],
)
def test_urls_that_cannot_be_used(url: str, words: str):
    with pytest.raises(UserError, match=words) as refused:
        open_run(url)
    assert "secret" not in str(refused.value)


def test_a_killed_run_goes_on_from_its_url(tmp_path: Path, tiny_settings: tuple[str, ...]):
    folder = tmp_path / "store" / "run"
    command = ["train", "swiss_roll", *tiny_settings, MORTAL, "training.num_iterations=60"]
    command += ["training.eval_every=30", "training.checkpoint_every=7", "--resume", "auto"]
    killed = (*command, "--out", folder.as_uri())
    code, _ = interrupt(*killed, said=tmp_path, number=signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert max(p.name for p in (folder / "checkpoints").iterdir()) == "000028"
    assert not (folder / "summary.json").exists()
    hashes = []
    for place in (folder.as_uri(), str(tmp_path / "undisturbed")):
        assert main([*command, "--out", place]) == 0
        path = folder if place.startswith("file:") else Path(place)
        hashes.append(json.loads((path / "summary.json").read_text())["policy_sha256"])
        assert pd.read_csv(path / "metrics.csv")["iteration"].tolist() == list(range(1, 61))
    assert hashes[0] == hashes[1]
