"""Kill what runs: the same policy comes out."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pandas as pd
import pytest
from real_cluster import wait_for
from users_ray import UsersRay

from benchmarks.chaos import LEARNER, TITLES, descendants, has_every_row_once, policy_sha256
from sft_rl.cli import main

ROOT = Path(__file__).parents[1]


def kill_a_learner(driver: int, metrics: Path) -> None:
    """Kill a driver's learner when it has written rows."""
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 10, every_s=0.02)
    found = [p for p, title in descendants(driver).items() if title.startswith(TITLES["learner"])]
    os.kill(*found, signal.SIGKILL)


@pytest.mark.ray
def test_a_learner_is_killed(
    tmp_path: Path, tiny_settings: tuple[str, ...], in_users_ray: UsersRay
):
    settings = (
        *tiny_settings,
        "training.num_iterations=200",
        "training.eval_every=100",
        "training.checkpoint_every=25",
        "metrics.full_step=off",
    )
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert main(["train", "swiss_roll", *settings, "--out", str(alone)]) == 0
    pid = in_users_ray.process.pid
    killer = Thread(target=kill_a_learner, args=(pid, killed / "metrics.csv"), daemon=True)
    killer.start()
    workers = ("rollout.num_workers=1", "rollout.num_cpus_per_worker=0.5")
    ears = "learner.callbacks=[tests.ray_train_ears:Ears]"
    said = in_users_ray(
        "sft-rl", "train", "swiss_roll", *settings, *LEARNER, ears, *workers, "--out", str(killed)
    )
    killer.join()
    assert policy_sha256(killed) == policy_sha256(alone)
    assert has_every_row_once(killed, 200)
    assert said.count("starting workers") == 2, said
    lines = (killed / "ray" / "heard.jsonl").read_text().splitlines()
    heard = [json.loads(line) for line in lines]
    assert [one for one in heard if "died" in one] == [{"died": [0]}]
    measured = pd.read_csv(killed / "metrics.csv")["two_sample"].dropna().tolist()
    assert heard[-1] == {"reported": [measured[-1]]}


@pytest.mark.ray
@pytest.mark.parametrize(("lost", "too_many"), [(1, 1), pytest.param(4, 3, marks=pytest.mark.slow)])
def test_nodes_that_leave_while_workers_start_are_no_loss_of_theirs(
    tmp_path: Path, lost: int, too_many: int
):
    script = Path(__file__).with_name("leaving_nodes.py")
    command = [sys.executable, str(script), str(tmp_path), str(lost), str(too_many)]
    path = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "drawn").read_text() == f"2 shards, {lost} replaced"


@pytest.mark.slow
@pytest.mark.ray
def test_sixteen_kills_of_every_kind(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks.chaos", "--kills", "16", "--untimed"]
    command += ["--kills-per-run", "4", "--out", str(tmp_path / "chaos.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "chaos.json").read_text())
    assert result["num_kills"] == 16
    assert result["lost_runs"] == 0
