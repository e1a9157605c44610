"""What a run logs to Weights & Biases and MLflow, by stand-ins of their packages."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sft_rl
from sft_rl.cli import main
from sft_rl.runs.remote import open_run

STAND_IN = """
import contextlib, json

def noted(name, /, *args, **kwargs):
    with open({notes!r}, "a") as file:
        file.write(json.dumps([name, args, kwargs]) + "\\n")

class Run(contextlib.AbstractContextManager):
    def __exit__(self, *error):
        noted("end")

    def log(self, metrics, step):
        noted("log", metrics, step=step)

def init(**kwargs):
    noted("init", **kwargs)
    if kwargs["project"] == "closed":
        raise PermissionError("not yours\\nreally")
    return Run()

def start_run(**kwargs):
    noted("start_run", **kwargs)
    return Run()

def __getattr__(name):
    return lambda *args, **kwargs: noted(name, *args, **kwargs)
"""

Notes = Callable[[str], list[Any]]


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notes]:
    """Put both packages onto the path; return what reads the calls of one."""
    for package in ("wandb", "mlflow"):
        text = STAND_IN.format(notes=str(tmp_path / f"{package}.txt"))
        (tmp_path / f"{package}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda package: [
        json.loads(line) for line in (tmp_path / f"{package}.txt").read_text().splitlines()
    ]
    for package in ("wandb", "mlflow"):
        sys.modules.pop(package, None)


def test_a_run_tells_both_its_settings_its_iterations_and_its_end(
    tmp_path: Path,
    notes: Notes,
    tiny_settings: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
):
    out = tmp_path / "mine"
    services = ("--wandb", "few-steps", "--mlflow", "http://127.0.0.1:5000")
    assert main(["train", "swiss_roll", *tiny_settings, "--out", str(out), *services]) == 0
    run = open_run(out)
    rows, final = run.read_metrics(), run.read_summary()["final"]

    begun, *logged, ended = notes("wandb")
    assert ended == ["end", [], {}]
    own = begun[2]
    assert (own["project"], own["name"], own["resume"]) == ("few-steps", "mine", "allow")
    assert own["id"] == run.config.run_id
    assert own["config"]["sampler"]["num_steps"] == 4

    where, what, started, settings, *logged_there, ended = notes("mlflow")
    assert where == ["set_tracking_uri", ["http://127.0.0.1:5000"], {}]
    assert what == ["set_experiment", ["swiss_roll"], {}]
    assert started == ["start_run", [], {"run_name": "mine"}]
    assert settings == ["log_dict", [own["config"], "config.json"], {}]
    assert ended == ["end", [], {}]

    assert [call[1:] for call in logged_there] == [call[1:] for call in logged]
    *iterations, last = logged
    assert [call[2]["step"] for call in iterations] == rows["iteration"].tolist() == [1, 2, 3]
    assert iterations[1][1][0]["two_sample"] == rows["two_sample"][1]
    assert last[1][0]["final/two_sample"] == final["two_sample"]

    refused = ["train", "swiss_roll", *tiny_settings, "--out", str(tmp_path / "b")]
    assert main([*refused, "--wandb", "closed"]) == 2
    assert "--wandb: PermissionError: not yours" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_package_that_is_missing_is_named_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_settings: tuple[str, ...]
):
    words = ["train", "swiss_roll", *tiny_settings, "--out", str(tmp_path / "run")]
    assert main([*words, "--wandb", "few-steps"]) == 2
    said = capsys.readouterr().err
    assert "--wandb: needs the package wandb; pip install 'sft-rl[wandb]'" in said
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(sft_rl.UserError, match="--mlflow: needs the package mlflow"):
        sft_rl.fine_tune("swiss_roll", out=tmp_path / "run", mlflow="http://127.0.0.1:5000")
