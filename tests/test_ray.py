"""Rollouts on Ray: the same numbers as without, and nothing left running."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import session_processes
from real_cluster import wait_for

from sft_rl.cli import main

pytestmark = pytest.mark.ray


def start(out: Path, *settings: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sft_rl", "train", "swiss_roll", *settings, "--out", str(out)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ.copy(),
        start_new_session=True,
    )


def test_workers_give_the_same_policy_as_none_and_are_gone_after(
    tmp_path: Path, tiny_settings: tuple[str, ...]
):
    settings = (*tiny_settings, "rollout.shards_per_batch=4")
    workers = ("rollout.num_workers=1", "rollout.num_cpus_per_worker=0.5")
    process = start(tmp_path / "with", *settings, *workers)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    wait_for(lambda: session_processes(process.pid) == [])
    assert main(["train", "swiss_roll", *settings, "--out", str(tmp_path / "without")]) == 0
    summaries = [tmp_path / name / "summary.json" for name in ("with", "without")]
    assert len({json.loads(file.read_text())["policy_sha256"] for file in summaries}) == 1


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "a checkpoint is saved, go on with --resume"),
        (signal.SIGTERM, 143, "a checkpoint is saved, go on with --resume"),
    ],
)
def test_a_signal_stops_ray_too(
    tmp_path: Path,
    tiny_settings: tuple[str, ...],
    number: signal.Signals,
    code: int,
    said: str,
):
    settings = (*tiny_settings, "rollout.num_workers=1", "training.num_iterations=1000000")
    process = start(tmp_path / "run", *settings)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("fine-tuning "):
            break
    os.kill(process.pid, number)
    _, errors = process.communicate()
    assert process.returncode == code, errors
    (line,) = errors.splitlines()
    assert said in line
    wait_for(lambda: session_processes(process.pid) == [])


def test_ray_that_was_imported_too_early_is_refused():
    code = (
        "import ray\n"
        "from sft_rl.distributed.session import RaySession\n"
        "from sft_rl.config.files import load_config\n"
        "config = load_config('swiss_roll')\n"
        "with RaySession(config.ray, config.rollout) as session:\n"
        "    session.wait()\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode != 0
    assert "call ray.init() yourself, and that Ray is used, or " in (done.stderr.splitlines()[-1])
