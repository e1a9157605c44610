"""The learner under Ray Train: the same result, alone or in a team; errors and notices arrive."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from real_cluster import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LAUNCH = (
    "learner.launcher=ray_train",
    "learner.num_cpus=0.5",
    "rollout.num_workers=1",
    "rollout.num_cpus_per_worker=0.5",
)
TIMES = ["seconds", "seconds_waiting", "trajectories_per_second"]


def command(out: Path, *settings: str) -> list[str]:
    words = [sys.executable, "-m", "sft_rl", "train", "swiss_roll", *settings]
    return [*words, "--out", str(out), "--resume", "auto"]


def run(out: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(out, *settings), capture_output=True, text=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_settings: tuple[str, ...]) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    done = run(out, *tiny_settings, "training.num_iterations=300", "training.checkpoint_every=50")
    assert done.returncode == 0, done.stderr
    return out


def test_sigterm_saves_and_the_run_goes_on(
    tmp_path: Path, tiny_settings: tuple[str, ...], alone: Path
):
    out = tmp_path / "run"
    settings = (*tiny_settings, "training.num_iterations=300", "training.checkpoint_every=50")
    process = subprocess.Popen(
        command(out, *settings, *LAUNCH),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = out / "metrics.csv"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 30, every_s=0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 143, errors
    assert "a checkpoint is saved, go on with --resume" in errors
    stopped = pd.read_csv(metrics)["iteration"].max()
    assert (out / "checkpoints" / f"{stopped:06d}").exists()
    done = run(out, *settings, *LAUNCH)
    assert done.returncode == 0, done.stderr
    summaries = [json.loads((p / "summary.json").read_text()) for p in (out, alone)]
    assert summaries[0]["policy_sha256"] == summaries[1]["policy_sha256"]
    assert pd.read_csv(metrics)["iteration"].tolist() == list(range(1, 301))
    from ray.train import Result  # here: slow to import

    result = Result.from_path(out / "ray" / "train")
    assert result.metrics["iteration"] == 300
    assert result.metrics["two_sample"] == pd.read_csv(metrics)["two_sample"].iloc[-1]
    with result.checkpoint.as_directory() as folder:
        assert json.loads((Path(folder) / "run.json").read_text()) == {"run": str(out)}


def test_two_learners(tmp_path: Path, tiny_settings: tuple[str, ...]):
    """Of an adapter, whose weights at rest all copies of the policy share, split or not."""
    tiny_settings += ("policy.lora.rank=2", "sampler.learn_std=true")
    done = run(tmp_path / "one", *tiny_settings)
    assert done.returncode == 0, done.stderr
    done = run(tmp_path / "two", *tiny_settings, *LAUNCH, "learner.num_workers=2")
    assert done.returncode == 0, done.stderr
    split = ("learner.num_workers=2", "learner.strategy=fsdp")
    done = run(tmp_path / "split", *tiny_settings, *LAUNCH, *split)
    assert done.returncode == 0, done.stderr
    one, two, parted = (
        pd.read_csv(tmp_path / n / "metrics.csv").drop(columns=TIMES)
        for n in ("one", "two", "split")
    )
    pd.testing.assert_frame_equal(two, one, rtol=1e-3, atol=1e-4)
    pd.testing.assert_frame_equal(parted, one, rtol=1e-3, atol=1e-4)


def test_a_learners_own_error_is_one_line(
    tmp_path: Path, tiny_settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "my_reward.py").write_text(
        "def reward(x):\n    if len(x) > 2:\n        raise KeyError('height')\n    return x[:, 0]\n"
    )
    monkeypatch.chdir(tmp_path)
    done = run(tmp_path / "run", *tiny_settings, *LAUNCH, "reward=my_reward:reward")
    assert done.returncode == 1
    assert done.stderr == (
        "sft-rl: reward: 'reward' failed in my_reward.py:3, reward: KeyError: 'height'\n"
    )
