"""RLlib's PPO: its default module on a Box, and the sampler itself as its policy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integrations, pytest.mark.ray]

SCRIPT = Path(__file__).parent / "rllib_script.py"


def test_ppo_trains_both_modules(tiny_settings: tuple[str, ...]):
    """In a process of its own, as every test that starts Ray."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *tiny_settings],
        capture_output=True,
        text=True,
        env=os.environ.copy(),
    )
    assert done.returncode == 0, done.stderr
    names = ("default", "sampler", "scalar")
    assert done.stdout.splitlines() == [f"{name} trained" for name in names]
