"""Weights travel to a node once, however many workers it has."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.ray
def test_weights_are_sent_once_to_a_node(tmp_path):
    sizes = ["--workers", "6", "--nodes", "2", "--iterations", "3", "--rollout-s", "0.2"]
    command = [sys.executable, "-m", "benchmarks.scaling", *sizes, "--out", tmp_path / "out.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row, ahead = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert 0.9 < row["weight_bytes_sent"] / row["weight_bytes"] < 1.5
    assert 0.0 < row["efficiency"] <= 1.0
    assert row["weight_copies"] == 2
    # Which of them is less needs a machine of its own: the two are measured one after the other.
    assert all(0.0 < one["learner_idle"] < 1.0 for one in (row, ahead))
