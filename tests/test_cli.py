"""The command line as a user has it: real processes, their files, their exit codes."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Thread

import numpy as np
import pandas as pd
import pytest
import yaml
from processes import PROCESSES, SERVER, say_to

from sft_rl.cli import main

SUMMARY_KEYS = {
    "num_steps",
    "two_sample_initial",
    "two_sample_final",
    "two_sample_full_step",
    "sliced_wasserstein_initial",
    "sliced_wasserstein_final",
    "sliced_wasserstein_full_step",
    "noise_floor",
    "wall_seconds",
    "policy_sha256",
}


def sft_rl(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sft_rl", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ.copy())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_settings: tuple[str, ...]) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    settings = (*tiny_settings, "training.plots=true")
    done = sft_rl("train", "swiss_roll", *settings, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "fine-tuning 3/3" in done.stdout
    assert "noise floor" in done.stdout
    return out


def test_a_run_leaves_everything(run: Path):
    summary = json.loads((run / "summary.json").read_text())
    assert summary.keys() >= SUMMARY_KEYS
    assert summary["num_steps"] == 4
    assert summary["protocol"] == {
        "num_samples": 400,
        "num_projections": 20,
        "num_exact": 100,
        "neighbours": 5,
        "num_excess": 800,
        "excess_batch": 50,
        "num_excess_reference": 12_800,
        "reference": "held-out swiss_roll",
        "seed": 0,
        "nfe": 4,
    }
    assert summary["wall_seconds"]["total"] > 0
    assert yaml.safe_load((run / "config.yaml").read_text())["sampler"]["num_steps"] == 4
    metrics = pd.read_csv(run / "metrics.csv")
    assert metrics["iteration"].tolist() == [1, 2, 3]
    for name in ("two_sample", "precision", "recall", "sliced_wasserstein"):
        assert metrics[name].notna().tolist() == [False, True, True]
    for measured in (summary["before"], summary["final"], summary["full_step"]):
        assert measured.keys() >= {"precision_se", "recall_se", "sliced_wasserstein", "mmd"}
        assert measured["two_sample_se"] > 0.0 < measured["excess_se"]
    assert summary["full_step"]["noise_floors"]["two_sample_sd"] > 0.0
    assert sorted(p.name for p in (run / "plots").iterdir()) == [
        "curves.png",
        "path.png",
        "samples.png",
    ]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["000002", "000003"]


def test_a_taken_folder_is_refused_and_left_alone(
    run: Path, tiny_settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert main(["train", "swiss_roll", "--out", str(run), *tiny_settings]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_evaluate_repeats_the_summary(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", str(run)]) == 0
    final = json.loads((run / "summary.json").read_text())["sliced_wasserstein_final"]
    said = capsys.readouterr().out
    assert f"{final:.4f}" in said
    assert said.startswith("evaluation\nevaluation 1/4")
    assert "evaluation 4/4" in said, "steps of its samples"
    assert "images" not in said


def test_samples_are_in_the_datas_units_and_repeatable(run: Path, tmp_path: Path):
    def command(name: str, seed: str) -> list[str]:
        out = str(tmp_path / f"{name}.npy")
        return ["sample", str(run), "--num", "50", "--out", out, "--seed", seed]

    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main(command(name, seed)) == 0
    a, b, c = (np.load(tmp_path / f"{name}.npy") for name in "abc")
    assert a.shape == (50, 2)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_samples_are_not_written_over_a_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "mine.npy"
    file.write_bytes(b"mine")
    assert main(["sample", str(run), "--num", "5", "--out", str(file)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert file.read_bytes() == b"mine"
    assert main(["sample", str(run), "--num", "9" * 30, "--out", str(tmp_path / "x.npy")]) == 2
    assert "at most" in capsys.readouterr().err


def test_a_checkpoint_of_another_configuration_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(run, tmp_path / "run")
    settings = tmp_path / "run" / "config.yaml"
    settings.write_text(settings.read_text().replace("num_steps: 4", "num_steps: 5"))
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "another configuration: sampler" in line


def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, tiny_settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_bytes(b"mine")
    out = tmp_path / "file" / "run"
    assert main(["train", "swiss_roll", *tiny_settings, "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--out: cannot write to" in line
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_users_own_points(
    tmp_path: Path,
    tiny_settings: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """As a spreadsheet writes them; what was read of them is said before and after."""
    points = np.random.default_rng(0).normal([5.3e6, 5.0, 0.0], [10.0, 1.0, 0.1], (1500, 3))
    frame = pd.DataFrame(points, columns=["north", "b", "c"])
    frame.to_csv(tmp_path / "points.csv", sep=";", decimal=",")
    monkeypatch.chdir(tmp_path)
    own = (*tiny_settings, "data.path=points.csv")
    said = {
        "rows": "1,500, 300 held out",
        "columns": "north, b, c",
        "separator": "semicolon, decimal comma",
        "left out": "the unnamed first column, which counts the rows",
    }
    for more in (["critic.objective=mmd", "--dry-run"], ["--out", "run"]):
        assert main(["train", "swiss_roll", *own, *more]) == 0
        shown = re.sub(r"[│|\s]+", " ", capsys.readouterr().out)  # without the table's lines
        assert [words for words in said.values() if words not in shown] == []
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["data"] == said
    assert main(["sample", "run", "--num", "500", "--out", "samples.npy"]) == 0
    samples = np.load(tmp_path / "samples.npy")
    assert samples.shape == (500, 3)
    assert abs(samples[:, 0].mean() - 5.3e6) < 30.0
    assert samples[:, 0].std() > 1.0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "swissroll"], ["preset", "swissroll", "swiss_roll"]),
        (["train", "swiss_roll", "sampler.stps=3"], ["sampler.stps", "unknown"]),
        (["train", "swiss_roll", "zzz=1"], ["zzz", "unknown", "sampler, seed"]),
        (["train", "swiss_roll", "seed=x"], ["seed", "'x'", "integer"]),
        (["train", "swiss_roll", "sampler.num_steps=0"], ["sampler.num_steps", "1", "got 0"]),
        (["train", "swiss_roll", "sampler.num_steps=1001"], ["sampler.num_steps", "1000", "1001"]),
        (["train", "swiss_roll", "data.path=none.npy"], ["data.path", "none.npy"]),
        (["train", "swiss_roll", "algorithm=pqo"], ["algorithm", "pqo", "ppo"]),
        (["train", "swiss_roll", "sampler.eta=0"], ["sampler.eta", "pathwise"]),
        (["train", "swiss_roll", "device=cuda:9"], ["device", "cuda:9"]),
        (["train", "swiss_roll", "rollout.num_workers=999"], ["rollout.num_workers", "999"]),
        (
            ["train", "swiss_roll", "learner.num_workers=2"],
            ["learner.launcher=ray_train", "'local'"],
        ),
        (
            ["train", "swiss_roll", "learner.callbacks=[mine:Reports]"],
            ["learner.callbacks", "learner.launcher=ray_train"],
        ),
        (
            [
                "train",
                "swiss_roll",
                "--dry-run",
                "learner.launcher=ray_train",
                "learner.callbacks=[nowhere:Reports]",
            ],
            ["learner.callbacks", "cannot import 'nowhere'"],
        ),
        (
            ["train", "swiss_roll", "learner.strategy=fsdp"],
            ["learner.strategy", "there is one", "learner.num_workers"],
        ),
        (
            ["train", "swiss_roll", "learner.launcher=ray_train", "learner.num_cpus=999"],
            ["learner.num_cpus", "999"],
        ),
        (["train", "swiss_roll", "critic.objective=foo"], ["critic.objective", "foo", "hinge"]),
        (["train", "swiss_roll", "reward=foo"], ["reward", "foo", "module:function"]),
        (["evaluate", "nowhere"], ["nowhere", "holds no run"]),
        (["sample", "nowhere", "--num", "0", "--out", "x.npy"], ["--num", "got 0"]),
        (["presets", "nothing"], ["preset", "nothing"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    args: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    out = ["--out", "run"] if args[0] == "train" else []
    assert main([*args, *out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_got_bad_input_says_only_that(tmp_path: Path):
    done = sft_rl("train", "swiss_roll", "data.path=none.npy", "--out", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("sft-rl: data.path: ")
    assert list(tmp_path.iterdir()) == []


def test_presets_are_listed_and_shown(capsys: pytest.CaptureFixture[str]):
    assert main(["presets"]) == 0
    assert "swiss_roll_paper" in capsys.readouterr().out
    assert main(["presets", "swiss_roll_paper"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["training"]["n_critic"] == 5


@PROCESSES
def test_a_terminal_shows_what_goes_on_even_if_it_cannot_be_counted(
    tmp_path: Path, tiny_settings: tuple[str, ...]
):
    long = "metrics.num_samples=2000"  # 1000 steps of so many points take long enough to be seen
    command = ["train", "swiss_roll", *tiny_settings, long, "--out", str(tmp_path / "run")]
    terminal, its_end = os.openpty()
    own = {"TERM": "xterm", "COLUMNS": "120"}
    process = SERVER.Process(target=say_to, args=(Path(os.ttyname(its_end)), command), kwargs=own)
    process.start()
    Thread(target=lambda: (process.join(), os.close(its_end))).start()
    shown = b""
    with contextlib.suppress(OSError):  # raised when nobody has the other end open
        while chunk := os.read(terminal, 65536):
            shown += chunk
    os.close(terminal)
    assert process.exitcode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "first evaluation" in text
    assert "3/3" in text
    assert re.search(r"full-step sampler .*1000/1000", text)
    assert "first evaluation" not in text[text.rindex("fine-tuning") :]
