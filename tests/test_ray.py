"""A Ray that a command starts is gone after it, and is not started where it would be open."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import session_processes
from real_cluster import wait_for

pytestmark = pytest.mark.ray


def test_sigterm_stops_ray_too(tmp_path: Path, tiny_settings: tuple[str, ...]):
    settings = (*tiny_settings, "rollout.num_workers=1", "training.num_iterations=1000000")
    # A shell as people have them: none of this keeps a local Ray from starting.
    temporary = tmp_path / f"a {'long' * 30} folder"
    temporary.mkdir()
    around = {"TMPDIR": str(temporary), "RAY_ADDRESS": "http://127.0.0.1:8265"}
    around |= {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "sft_rl",
            "train",
            "swiss_roll",
            *settings,
            "--out",
            tmp_path / "run",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **around},
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("fine-tuning "):
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 143, errors
    (line,) = errors.splitlines()
    assert "a checkpoint is saved, go on with --resume" in line
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
