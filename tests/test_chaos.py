"""Kill what runs: the same policy comes out."""

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
def test_a_learner_is_killed(tmp_path: Path):
    """The first kill of seed 0, a second or two after the first rows."""
    settings = ("--kills", "1", "--kinds", "ray_train", "--iterations", "120", "--untimed")
    result = chaos(tmp_path / "chaos.json", *settings)
    assert result["kills"] == {"learner": 1}
    assert result["lost_runs"] == 0


@pytest.mark.slow
@pytest.mark.ray
def test_sixteen_kills_of_every_kind(tmp_path: Path):
    result = chaos(tmp_path / "chaos.json", "--kills", "16", "--untimed", "--kills-per-run", "4")
    assert result["num_kills"] == 16
    assert result["lost_runs"] == 0
