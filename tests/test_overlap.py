"""Rollouts that overlap learning: one version old, and still the same numbers everywhere."""

import json
import signal
from pathlib import Path

import pandas as pd
import pytest
from processes import MORTAL, PROCESSES, interrupt

from sft_rl.cli import main

pytestmark = PROCESSES

OVERLAP = (
    MORTAL,
    "training.max_offpolicy_steps=1",
    "training.num_iterations=40",
    "training.eval_every=20",
)


def run(out: Path, *settings: str) -> str:
    assert main(["train", "swiss_roll", *settings, "--out", str(out)]) == 0
    return policy_sha256(out)


@pytest.fixture(scope="module")
def settings(tiny_settings: tuple[str, ...]) -> tuple[str, ...]:
    return (*tiny_settings, *OVERLAP, "training.checkpoint_every=7")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, settings: tuple[str, ...]) -> Path:
    out = tmp_path_factory.mktemp("overlap") / "run"
    run(out, *settings)
    return out


def policy_sha256(out: Path) -> str:
    return str(json.loads((out / "summary.json").read_text())["policy_sha256"])


def test_it_is_another_algorithm_than_strictly_on_policy(
    tmp_path: Path, settings: tuple[str, ...], undisturbed: Path
):
    on_policy = run(tmp_path / "run", *settings, "training.max_offpolicy_steps=0")
    assert on_policy != policy_sha256(undisturbed)


def test_the_ratio_corrects_for_weights_one_version_old(undisturbed: Path):
    deviation = pd.read_csv(undisturbed / "metrics.csv")["first_ratio_deviation"]
    # Iteration 0 has no version before its own; later ones look back one update.
    assert deviation.iloc[0] < 1e-4
    assert deviation.iloc[1:].max() > 1e-3


def test_a_killed_run_goes_on_with_what_was_on_its_way(
    tmp_path: Path, settings: tuple[str, ...], undisturbed: Path
):
    out = tmp_path / "run"
    command = ("train", "swiss_roll", *settings, "--out", str(out))
    code, _ = interrupt(*command, said=tmp_path, number=signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (out / "summary.json").exists()
    assert run(out, *settings, "--resume") == policy_sha256(undisturbed)
    assert pd.read_csv(out / "metrics.csv")["iteration"].tolist() == list(range(1, 41))
