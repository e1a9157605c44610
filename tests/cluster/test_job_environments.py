"""What a job's runtime environment brings, and one that cannot be built."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TRAIN = ("--", "train", "swiss_roll")


def wheel(folder: Path, name: str, code: str) -> Path:
    """Build a wheel of one module."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", code)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_a_jobs_packages_are_there_in_its_process_and_its_workers(
    ray_cluster, sft_rl, tmp_path, tiny_settings
):
    package = wheel(tmp_path, "judgement", "def reward(x):\n    return x[:, 0]\n")
    (tmp_path / "env.yaml").write_text(yaml.safe_dump({"pip": [str(package)]}))
    scored = "reward.terms=[critic, {use: judgement:reward, num_scorers: 1}]"
    storage = ("--storage", str(ray_cluster.folder / "runs"))
    own = (*tiny_settings, "rollout.num_workers=1", scored)
    done = sft_rl("submit", "--env", "env.yaml", *storage, *TRAIN, *own)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fine-tuning 3/3" in done.stdout


UNDER_UV = """
import psutil

def reward(x):
    assert any(process.name() == "uv" for process in psutil.Process().parents())
    return x[:, 0]
"""


def test_under_uv_run_actors_are_too(ray_cluster, tmp_path, tiny_settings):
    """A driver under it joins a cluster; Ray starts what it needs in the same way."""
    (tmp_path / "judge.py").write_text(UNDER_UV)
    scored = "reward.terms=[critic, {use: judge:reward, num_scorers: 1}]"
    own = (*tiny_settings, "rollout.num_workers=1", scored, f"ray.address={ray_cluster.gcs}")
    uv = [str(Path(sys.executable).with_name("uv")), "run", "--no-project", "--offline"]
    python = ["--python", sys.executable, "python", "-m", "sft_rl"]
    command = [*uv, *python, "train", "swiss_roll", *own, "--out", str(tmp_path / "run")]
    env = ray_cluster.environment | {"RAY_AUTH_MODE": "token"}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fine-tuning 3/3" in done.stdout


def test_a_job_whose_environment_does_not_build_is_sent_again_if_asked(
    ray_cluster, sft_rl, tmp_path
):
    (tmp_path / "env.yaml").write_text("pip: [/nonexistent/package.whl]")
    job = (*TRAIN, "rollout.num_workers=1")
    done = sft_rl("submit", "--env", "env.yaml", "--retries", "1", *job)
    assert done.returncode == 4
    assert "did not run to its end: runtime_env setup failed" in done.stderr
    first, second = re.findall(r"^submitted (\S+)$", done.stderr, re.MULTILINE)
    assert second == f"{first}-2"
    entrypoint = ray_cluster.get(f"/api/jobs/{second}")["entrypoint"]
    assert entrypoint.endswith(f"/{first} --resume=auto"), "it would go on where the first was"
    refused = sft_rl("submit", "--detach", "--retries", "1", *job)
    assert refused.returncode == 2
    assert "--retries: got 1; a followed `train` or `tune` can be sent again" in refused.stderr
