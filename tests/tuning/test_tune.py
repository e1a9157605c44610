"""`sft-rl tune` as a whole: real trials on a real Ray."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml
from processes import session_processes
from real_cluster import RealCluster, wait_for

from sft_rl.cli import main
from tuning.records import Records
from tuning.report import TIMING

SPACE = {
    "settings": {"rollout.num_workers": 0},
    "space": {
        "sampler.num_steps": {"grid": [2, 3]},
        "policy.learning_rate": {"loguniform": [1e-4, 1e-2]},
    },
}
LEARNER = "ImplicitFunc"
"""Ray's name of the actor that a trial runs in."""
LONGER = ("training.num_iterations=40", "training.eval_every=5", "training.checkpoint_every=5")


def start(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
    """Start a search; a token that an earlier one left in this process is not its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-m", "sft_rl", "tune", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean | environment,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def on_cluster(ray_cluster: RealCluster) -> Callable[..., "subprocess.Popen[str]"]:
    """Start a search on a Ray that runs already: the same, without waiting for a start."""
    own = {k: v for k, v in ray_cluster.environment.items() if k.startswith("RAY_")}
    return lambda *arguments: start(*arguments, "--address", ray_cluster.gcs, **own)


def output(process: "subprocess.Popen[str]", code: int = 0) -> str:
    """Wait for a search; return what it printed, errors at the end."""
    out, err = process.communicate()
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out + err


def read_until(process: "subprocess.Popen[str]", text: str) -> None:
    """Read what a search prints until a line holds a text."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return
    raise AssertionError(f"no {text!r} in {seen}; {process.communicate()[1]}")


def states(folder: Path) -> list[str]:
    return [record.state for record in Records(folder).all()]


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "results.csv").drop(columns=list(TIMING))


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory, tiny_settings: tuple[str, ...]) -> list[str]:
    """A search of four trials, each long enough to be killed in."""
    file = tmp_path_factory.mktemp("search") / "space.yaml"
    file.write_text(yaml.safe_dump(SPACE))
    settings = [s for s in tiny_settings if not s.startswith(("sampler.", "rollout."))]
    sizes = ("--search", str(file), "--num-trials", "4", "--seed", "1", "--out")
    return ["swiss_roll", *settings, *LONGER, *sizes]


@pytest.fixture(scope="module")
def straight(
    tmp_path_factory: pytest.TempPathFactory,
    search: list[str],
    on_cluster: Callable[..., "subprocess.Popen[str]"],
) -> Path:
    """The search as it goes undisturbed, with a rollout worker in each trial."""
    folder = tmp_path_factory.mktemp("straight") / "search"
    workers = ("rollout.num_workers=1", "rollout.num_cpus_per_worker=0.5", "learner.num_cpus=0.5")
    process = on_cluster(*search, str(folder), *workers)
    assert "[4/4]" in output(process)
    return folder


@pytest.mark.ray
def test_a_search_reports_and_its_best_is_found_again(tmp_path: Path, straight: Path):
    assert states(straight) == ["done"] * 4
    check_report(straight)
    check_best_gives_the_same_policy(straight, tmp_path / "again")


@pytest.mark.ray
@pytest.mark.parametrize("everything", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_killed_search_moves_and_goes_on(
    tmp_path: Path,
    search: list[str],
    straight: Path,
    ray_cluster: RealCluster,
    on_cluster: Callable[..., "subprocess.Popen[str]"],
    capsys: pytest.CaptureFixture[str],
    everything: bool,
):
    """Without rollout workers: their number is no part of a result, but of a configuration."""
    broken, moved = tmp_path / "broken", tmp_path / "moved"
    starter = start if everything else on_cluster  # in a Ray of its own
    process = starter(*search, str(broken))
    read_until(process, " done ")
    process.kill()
    process.communicate()
    wait_for(lambda: session_processes(process.pid) == [])
    shutil.move(broken, moved)
    assert 1 <= states(moved).count("done") < 4

    if everything:  # an interruption, and the death of a trial
        process = on_cluster("--resume", str(moved))
        read_until(process, "trial 0")
        process.send_signal(signal.SIGINT)
        assert f"sft-rl tune --resume {moved}" in output(process, 130)
    process = on_cluster("--resume", str(moved))
    if everything:
        read_until(process, "trial 0")
        wait_for(lambda: ray_cluster.actors(LEARNER))
        os.kill(ray_cluster.actors(LEARNER)[0]["pid"], signal.SIGKILL)
    output(process)
    assert any(record.attempts == 2 for record in Records(moved).all()) == everything
    pd.testing.assert_frame_equal(table(moved), table(straight))
    capsys.readouterr()
    assert main(["tune", "--resume", str(moved)]) == 0
    assert "report:" in capsys.readouterr().out


@pytest.mark.ray
def test_what_a_trial_reached_after_its_drivers_death_is_told_again(
    tmp_path: Path, straight: Path, on_cluster: Callable[..., "subprocess.Popen[str]"]
):
    folder = tmp_path / "search"
    shutil.copytree(straight, folder)
    unheard(folder, 1, evaluations=1)  # its run is complete
    unheard(folder, 2, evaluations=5)
    output(on_cluster("--resume", str(folder)))
    assert Records(folder).all() == Records(straight).all()
    pd.testing.assert_frame_equal(table(folder), table(straight))


def unheard(folder: Path, trial: int, *, evaluations: int) -> None:
    """Leave a trial's folder as it is when the driver died before the last evaluations."""
    records = Records(folder)
    record, total = records[trial], records[trial].curve[-1][0]
    curve = record.curve[:-evaluations]
    percent = 100.0 * curve[-1][0] / total
    records.put(record.updated(state="running", percent=percent, curve=curve))
    (records.run_folder(trial) / "summary.json").unlink()


def check_report(folder: Path) -> None:
    results = pd.read_csv(folder / "results.csv")
    assert list(results["num_steps"]) == [2, 3, 2, 3]
    assert list(results["default"]) == [True, True, False, False]
    assert results["policy_sha256"].nunique() == 4
    assert results["pareto"].any()
    for name in ("pareto.png", "curves.png", "parallel.png"):
        assert (folder / name).stat().st_size > 5000
    text = (folder / "report.md").read_text()
    for word in ("| 2 |", "| 3 |", "noise floor", "4 done", "--config best-T4.yaml"):
        assert word in text
    for trial in range(4):
        assert list((folder / "ray").glob(f"session-1/{trial:03d}/events.out.tfevents*"))
    assert not list(folder.glob("trials/*/warnings.txt"))


def check_best_gives_the_same_policy(folder: Path, out: Path) -> None:
    results = pd.read_csv(folder / "results.csv")
    best = results[results["num_steps"] == 2].sort_values("distance").iloc[0]
    config = str(folder / "best-T2.yaml")
    code = main(["train", "--config", config, "rollout.num_workers=0", "--out", str(out)])
    assert code == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["policy_sha256"] == best["policy_sha256"]
    assert summary["two_sample_final"] == best["distance"]


@pytest.mark.ray
def test_optuna_with_asha_and_trials_that_go_wrong(
    tmp_path: Path,
    tiny_settings: tuple[str, ...],
    on_cluster: Callable[..., "subprocess.Popen[str]"],
):
    file = tmp_path / "space.yaml"
    rates = {"policy.learning_rate": {"choice": [1e-3, 1e39]}, "seed": {"randint": [0, 99]}}
    file.write_text(yaml.safe_dump({"space": rates}))
    out = tmp_path / "search"
    process = on_cluster(
        "swiss_roll", *tiny_settings, "--search", str(file), "--num-trials", "6", "--searcher",
        "optuna", "--scheduler", "asha", "--out", str(out),
    )  # fmt: skip
    text = output(process)
    results = pd.read_csv(out / "results.csv")
    assert len(results) == 6
    assert set(results["state"]) <= {"done", "stopped", "failed"}
    failed = results[results["policy.learning_rate"] > 1]
    assert len(failed)
    assert (failed["state"] == "failed").all()
    # The alarm stops most of them; a policy of NaNs may be refused by the env before it rings.
    reasons = failed["error"].str
    assert (reasons.startswith("training stopped") | reasons.contains("not finite")).all()
    assert (results[results["policy.learning_rate"] < 1]["state"] != "failed").all()
    assert "failed" in (out / "report.md").read_text()
    assert "failed" in text


@pytest.mark.ray
def test_a_population_exchanges_checkpoints(
    tmp_path: Path,
    tiny_settings: tuple[str, ...],
    on_cluster: Callable[..., "subprocess.Popen[str]"],
):
    file, out = tmp_path / "space.yaml", tmp_path / "search"
    rates = {"policy.learning_rate": {"loguniform": [1e-4, 1e-2]}}
    file.write_text(yaml.safe_dump({"space": rates}))
    process = on_cluster(
        "swiss_roll", *tiny_settings, "training.num_iterations=12", "--search", str(file),
        "--num-trials", "4", "--scheduler", "pbt", "--out", str(out),
    )  # fmt: skip
    output(process)
    results = pd.read_csv(out / "results.csv")
    assert list(results["state"]) == ["done"] * 4
    assert "holds the last ones" in (out / "report.md").read_text()
    exchanges = (out / "ray" / "session-1" / "pbt_global.txt").read_text().splitlines()
    assert exchanges

    # One that took over changed rates, and whose end nobody heard of, ends with those rates.
    before = Records(out).all()
    unheard(out, json.loads(exchanges[-1])[5]["trial"]["index"], evaluations=1)
    output(on_cluster("--resume", str(out)))
    assert Records(out).all() == before
    again = pd.read_csv(out / "results.csv")
    assert list(again["policy_sha256"]) == list(results["policy_sha256"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["swiss_roll"], "--search: is missing"),
        ([], "PRESET: is missing"),
        (["swiss_rol", "--search", "lr_steps"], "--num-trials: is missing"),
        (["swiss_rol", "--search", "lr_steps", "--num-trials", "1"], "did you mean 'swiss_roll'"),
        (["swiss_roll", "--search", "lr", "--num-trials", "1"], "--search: 'lr' is unknown"),
        (
            ["swiss_roll", "learner.num_cpus=999", "--search", "lr_steps", "--num-trials", "1"],
            "learner.num_cpus, learner.num_gpus: no node has the 999 CPUs asked for: this machine",
        ),
        (
            ["swiss_roll", "--search", "lr_steps", "--num-trials", "1", "--mlflow", "x"],
            "pip install 'sft-rl[mlflow]'",
        ),
        (
            ["swiss_roll", "--search", "lr_steps", "--num-trials", "1", "--address", "http://x:1"],
            "ray.address: got 'http://x:1'; allowed: auto, or HOST:6379",
        ),
        (["--resume", "nowhere"], "nowhere holds no search"),
        (["swiss_roll", "--resume", "nowhere"], "give no preset"),
    ],
)
def test_wrong_input_is_refused_before_anything_starts(
    tmp_path: Path, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "search"
    options = [] if "--resume" in arguments or not arguments else ["--out", str(out)]
    assert main(["tune", *arguments, *options]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_search_that_could_not_join_can_be_asked_for_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["swiss_roll", "--search", "lr_steps", "--num-trials", "1", "--out", str(tmp_path)]
    for _ in range(2):
        assert main(["tune", *arguments, "--address", "127.0.0.1:1"]) == 2
        said = "sft-rl: ray.address: no cluster at 127.0.0.1:1: Connection refused\n"
        assert capsys.readouterr().err == said


def test_an_existing_search_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "search.yaml").write_text("")
    arguments = ["swiss_roll", "--search", "lr_steps", "--num-trials", "1"]
    assert main(["tune", *arguments, "--out", str(tmp_path)]) == 2
    assert f"sft-rl tune --resume {tmp_path}" in capsys.readouterr().err
