"""An interrupted run goes on to the very policy it would have reached."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from sft_rl.checkpoint import load


def command(out: Path, *settings: str) -> list[str]:
    return [sys.executable, "-m", "sft_rl", "train", "swiss_roll", *settings, "--out", str(out)]


def run(out: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(out, *settings), capture_output=True, text=True)


def interrupt(out: Path, number: signal.Signals, *settings: str) -> tuple[int, str]:
    """Start a run and send it a signal once a few iterations are logged."""
    process = subprocess.Popen(
        command(out, *settings), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    metrics = out / "metrics.csv"
    while process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") > 30:
            process.send_signal(number)
            break
    _, errors = process.communicate()
    return process.returncode, errors


def policy_sha256(out: Path) -> str:
    return str(json.loads((out / "summary.json").read_text())["policy_sha256"])


def contents(out: Path) -> dict[Path, bytes]:
    """What is in a run's folder; the lock names whoever looked last."""
    return {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.fixture(scope="module")
def settings(tiny_settings: tuple[str, ...]) -> tuple[str, ...]:
    return (
        *tiny_settings,
        "training.num_iterations=120",
        "training.eval_every=40",
        "training.checkpoint_every=7",
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, settings: tuple[str, ...]) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    done = run(out, *settings)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_after_a_signal(
    tmp_path: Path, settings: tuple[str, ...], undisturbed: Path, number: signal.Signals
):
    out = tmp_path / "run"
    code, errors = interrupt(out, number, *settings)
    if number is signal.SIGTERM:
        assert code == 143
        assert "go on with --resume" in errors
        saved = max((out / "checkpoints").iterdir())
        assert pd.read_csv(out / "metrics.csv")["iteration"].max() == load(saved).meta["iteration"]
    else:
        assert code == -signal.SIGKILL
    assert not (out / "summary.json").exists()
    done = run(out, *settings, "--resume")
    assert done.returncode == 0, done.stderr
    assert policy_sha256(out) == policy_sha256(undisturbed)
    assert pd.read_csv(out / "metrics.csv")["iteration"].tolist() == list(range(1, 121))


def test_over_a_damaged_checkpoint(tmp_path: Path, settings: tuple[str, ...], undisturbed: Path):
    out = tmp_path / "run"
    interrupt(out, signal.SIGKILL, *settings)
    newest = max((out / "checkpoints").iterdir())
    content = (newest / "policy.safetensors").read_bytes()
    (newest / "policy.safetensors").write_bytes(content[:-1])
    done = run(out, *settings, "--resume")
    assert done.returncode == 0, done.stderr
    assert "is damaged" in done.stdout
    assert policy_sha256(out) == policy_sha256(undisturbed)


def test_what_cannot_be_resumed_is_refused(
    tmp_path: Path, settings: tuple[str, ...], undisturbed: Path
):
    before = contents(undisturbed)
    finished = run(undisturbed, *settings, "--resume")
    assert finished.returncode == 0
    assert "is finished" in finished.stdout
    changed = ("training.num_iterations=130", "policy.learning_rate=0.5")
    other = run(undisturbed, *settings, *changed, "--resume")
    assert other.returncode == 2
    assert "policy.learning_rate was 0.0002, now 0.5" in other.stderr
    assert "num_iterations" not in other.stderr
    assert contents(undisturbed) == before
    empty = run(tmp_path, *settings, "--resume")
    assert empty.returncode == 2
    assert "holds no run" in empty.stderr


def test_two_processes_on_one_folder(tmp_path: Path, settings: tuple[str, ...]):
    out = tmp_path / "run"
    first = subprocess.Popen(
        command(out, *settings, "training.num_iterations=100000"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (out / "metrics.csv").exists():
        assert first.poll() is None
    second = run(out, *settings, "training.num_iterations=100000", "--resume")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert second.returncode == 2
    assert f"in use by process {first.pid} on " in second.stderr
