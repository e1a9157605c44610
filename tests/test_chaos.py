"""Kill the learner and the driver of a real run: the same policy comes out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def chaos(out: Path, *args: str) -> dict[str, object]:
    command = [sys.executable, "-m", "benchmarks.chaos", *args, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, object] = json.loads(out.read_text())
    return result


@pytest.mark.ray
def test_two_kills(tmp_path: Path):
    settings = ("--kills", "2", "--kinds", "ray_train", "--iterations", "300", "--untimed")
    result = chaos(tmp_path / "chaos.json", *settings)
    assert result["num_kills"] == 2
    assert result["lost_runs"] == 0


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_twelve_kills_of_every_kind(tmp_path: Path):
    result = chaos(tmp_path / "chaos.json", "--kills", "12", "--untimed", "--kills-per-run", "4")
    assert result["num_kills"] == 12
    assert result["lost_runs"] == 0
