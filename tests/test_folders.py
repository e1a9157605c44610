"""Folders as people have them: others' files stay, and what is not the run's own is not read."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from sft_rl.cli import main
from sft_rl.config import ResolvedConfig
from sft_rl.errors import UserError
from sft_rl.runs.folder import RunFolder
from sft_rl.storage.checkpoint import Checkpoint, load, save
from sft_rl.storage.files import replace_file
from sft_rl.storage.metrics_log import MetricsLog

Run = Callable[..., int]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_settings: tuple[str, ...]) -> Path:
    """Runs `seed0` and `seed1`, finished."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in ("0", "1"):
        out = ("--out", str(folder / f"seed{seed}"))
        assert main(["train", "swiss_roll", *tiny_settings, f"seed={seed}", *out]) == 0
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_others_files_are_never_touched(
    tmp_path: Path,
    tiny_settings: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    mine = tmp_path / "mine"
    for name in ("checkpoints/000000/mine", "summary.json", "metrics.csv", "plots/path.png"):
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_text("mine")
    before = contents(tmp_path)
    search = ["tune", "swiss_roll", *tiny_settings, "--search", "lr_steps", "--num-trials", "2"]
    settings = tmp_path / "cluster.yaml"
    monkeypatch.chdir(mine)
    for out in (str(mine), ".", mine.as_uri()):
        assert main(["train", "swiss_roll", *tiny_settings, "--out", out]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("sft-rl: --out:") and "not empty" in line
    assert main([*search, "--out", str(mine)]) == 2
    assert "not empty" in capsys.readouterr().err
    before[settings] = b"name: a\nslurm: {nodes: 1, directory: /a}\n"
    settings.write_bytes(before[settings])
    render = ["cluster", "render", "--settings", str(settings), "--target", "slurm", "--out"]
    assert main([*render, "summary.json"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("words", [["--out", ""], ["--out="], ["", "--out", "a"]])
def test_an_empty_word_is_no_folder(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["train", "swiss_roll", *words])
    assert list(tmp_path.iterdir()) == []


def test_home_is_found_behind_an_equals_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_settings: tuple[str, ...]
):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "p.npy", np.random.default_rng(0).normal(size=(400, 2)))
    own = ("data.path=~/p.npy", "--out=~/run")
    assert main(["train", "swiss_roll", *tiny_settings, *own]) == 0
    assert RunFolder.holds_run(tmp_path / "run")


def test_a_checkpoint_of_another_run_is_not_taken(
    tmp_path: Path,
    runs: Path,
    tiny_settings: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
):
    run = tmp_path / "run"
    shutil.copytree(runs / "seed0", run)
    summary = (run / "summary.json").read_bytes()
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / "000003")
    shutil.copytree(runs / "seed1" / "checkpoints" / "000003", run / "checkpoints" / "000003")
    resume = ["train", "swiss_roll", *tiny_settings, "--out", str(run), "--resume"]
    assert main(resume) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "another configuration: seed was 1, now 0; going back to 000002" in said
    ours, was = json.loads((run / "summary.json").read_bytes()), json.loads(summary)
    assert ours["policy_sha256"] == was["policy_sha256"]
    # The same settings, another run: a reward that Python hands over is not in the settings.
    again = load(run / "checkpoints" / "000003")
    again.meta["config"]["run_id"] = "another"
    save(run / "checkpoints" / "000003", again)
    store = RunFolder.open(run)
    told: list[str] = []
    store.warn = told.append
    assert store.latest().meta["iteration"] == 2
    assert "of another run" in told[0]


@pytest.mark.parametrize("damage", ["old field", "no settings", "no groups", "shapes", "renamed"])
def test_a_checkpoint_that_does_not_fit_makes_way_for_the_older(
    damage: str, tmp_path: Path, runs: Path
):
    run = tmp_path / "run"
    shutil.copytree(runs / "seed0", run)
    folder = run / "checkpoints" / "000003"
    whole = load(folder)
    meta, tensors = whole.meta, dict(whole.tensors)
    if damage == "old field":
        meta["config"]["sampler"]["of_an_older_version"] = 1
    elif damage == "no settings":
        del meta["config"]
    elif damage == "no groups":
        tensors = {}
    elif damage == "shapes":
        tensors["average"] = {name: t[..., None] for name, t in tensors["average"].items()}
    else:
        shutil.rmtree(folder)
        folder = folder.with_name("000007")
    save(folder, Checkpoint(tensors, meta))
    store, told = RunFolder.open(run), []
    store.warn = told.append
    store.result()
    (line,) = told
    assert line.endswith("; going back to 000002") and "\n" not in line


def test_checkpoints_are_in_the_order_of_their_numbers(
    tmp_path: Path, tiny_config: Callable[..., ResolvedConfig]
):
    store = RunFolder.create(tmp_path / "run", tiny_config())
    meta = {"config": store.config.model_dump(mode="json")}
    for iteration in (1_000_000, 999_950):
        name = f"{iteration:06d}"
        save(store.path / "checkpoints" / name, Checkpoint({}, {**meta, "iteration": iteration}))
    assert store.latest().meta["iteration"] == 1_000_000


def test_lost_rows_are_said(tmp_path: Path):
    file = tmp_path / "metrics.csv"
    log = MetricsLog(file)
    for iteration in range(1, 7):
        log.append({"iteration": iteration, "loss": 0.5})
    whole = file.read_text()
    assert MetricsLog(file).cut(5) == []
    assert pd.read_csv(file)["iteration"].tolist() == [1, 2, 3, 4, 5]
    file.write_text(whole.replace("3,0.5\n", ""))
    assert MetricsLog(file).cut(5) == [3]
    for damaged in (b"", b"\xff\xfe\x00", b"a,b\n1,2\n", b"\n\n"):
        file.write_bytes(damaged)
        emptied = MetricsLog(file)
        assert emptied.cut(2) == [1, 2]
        emptied.append({"iteration": 3, "loss": 0.5})
        assert pd.read_csv(file)["iteration"].tolist() == [3]
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(OSError, match="no regular file"):
        MetricsLog(file).cut(2)


def test_a_damaged_summary_is_not_the_end_of_a_run(
    tmp_path: Path, runs: Path, tiny_settings: tuple[str, ...]
):
    run = tmp_path / "run"
    shutil.copytree(runs / "seed0", run)
    whole = json.loads((run / "summary.json").read_bytes())
    (run / "summary.json").unlink()
    os.mkfifo(run / "summary.json")  # which would be read for ever
    with pytest.raises(UserError, match="no regular file"):
        RunFolder.open(run).read_summary()
    (run / "summary.json").unlink()
    (run / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json is damaged"):
        RunFolder.open(run).read_summary()
    assert main(["train", "swiss_roll", *tiny_settings, "--out", str(run), "--resume"]) == 0
    again = json.loads((run / "summary.json").read_bytes())
    assert again["policy_sha256"] == whole["policy_sha256"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["run_id"] == RunFolder.open(runs / "seed0").config.run_id


def test_writers_of_one_file_do_not_meet(tmp_path: Path):
    file, errors = tmp_path / "a.json", []

    def write(number: int) -> None:
        try:
            for _ in range(40):
                replace_file(file, json.dumps([number] * 200).encode())
                assert len(json.loads(file.read_bytes())) == 200
        except Exception as error:  # shown below
            errors.append(error)

    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert errors == []
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
