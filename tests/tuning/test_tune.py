"""`sft-rl tune` as a whole: real trials on a real Ray."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
import yaml
from processes import session_processes
from real_cluster import RealCluster, wait_for
from users_ray import NUM_CPUS, UsersRay, without_ray

from sft_rl.cli import main
from tuning.folder import SearchFolder
from tuning.records import Records
from tuning.report import write_report

LEARNER = "ImplicitFunc"
"""Ray's name of the actor that a trial runs in."""
ALONE = f"learner.num_cpus={os.cpu_count()}"
"""One trial at a time: one process that has to import what a trial needs."""
LONGER = ("training.num_iterations=20", "training.eval_every=5", "training.checkpoint_every=5")
ONE_TRIAL = ("--search", "lr_steps", "--num-trials", "1")
RATES = {"policy.learning_rate": {"loguniform": [1e-4, 1e-2]}}


def start(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
    """Start a search in a Ray of its own, or on a cluster that the environment gives."""
    return subprocess.Popen(
        [sys.executable, "-m", "sft_rl", "tune", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=without_ray() | environment,
        start_new_session=True,
    )


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


def states(records: Records) -> list[str]:
    return [record.state for record in records.all()]


def write_space(folder: Path, space: object) -> str:
    (folder / "space.yaml").write_text(yaml.safe_dump({"space": space}))
    return str(folder / "space.yaml")


@pytest.fixture
def search(tmp_path: Path, tiny_settings: tuple[str, ...]) -> list[str]:
    """A search of one configuration, the preset's own, with two seeds, and two more."""
    sizes = ("--num-trials", "1", "--seeds", "2", "--final-seeds", "2")
    space = ("--search", write_space(tmp_path, RATES))
    return ["swiss_roll", *tiny_settings, *LONGER, ALONE, *sizes, *space, "--out"]


@pytest.mark.ray
def test_a_killed_search_moves_goes_on_and_trains_its_winners_again(
    tmp_path: Path, search: list[str], in_users_ray: UsersRay, capsys: pytest.CaptureFixture[str]
):
    broken, moved = tmp_path / "broken", tmp_path / "moved"
    process = start(*search, str(broken))
    read_until(process, " done ")
    while running := session_processes(process.pid):  # as a machine that goes down
        for pid in running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.communicate()
    shutil.move(broken, moved)
    assert 1 <= states(SearchFolder(moved).records()[0]).count("done") < 2
    # A trial outlives its driver for a moment: this one got further than the driver has heard.
    unheard(SearchFolder(moved).records()[0], 0, evaluations=3)

    said = in_users_ray("sft-rl", "tune", "--resume", str(moved))
    trials, finals = SearchFolder(moved).records()
    assert states(trials) == states(finals) == ["done"] * 2
    assert [record.seed for record in (*trials.all(), *finals.all())] == [0, 1, 2, 3]
    for records in (trials, finals):
        for record in records.all():
            rows = pd.read_csv(records.run_folder(record.index) / "metrics.csv")
            told = rows[["iteration", "two_sample"]].dropna()
            assert record.curve == tuple(told.itertuples(index=False, name=None))
    # The one that was not heard, found again as the best; and the one that was killed.
    check_alone_is_the_same(trials, 0, tmp_path / "first", config=moved / "best-T4.yaml")
    check_alone_is_the_same(trials, 1, tmp_path / "second")
    assert "## On held-out data" in said
    assert list(pd.read_csv(moved / "final.csv")["seed"]) == [2, 3]
    for session, number in (("session-2", 0), ("session-3", 1)):
        assert list((moved / "ray" / session / f"{number:03d}").glob("events.out.tfevents*"))
    capsys.readouterr()
    assert main(["tune", "--resume", str(moved)]) == 0  # nothing is left to do
    assert "report:" in capsys.readouterr().out


def policy(folder: Path) -> str:
    return str(json.loads((folder / "summary.json").read_text())["policy_sha256"])


def check_alone_is_the_same(
    records: Records, index: int, out: Path, *, config: Path | None = None
) -> None:
    """A trial gives what `sft-rl train` does, whatever has happened to it."""
    run = records.run_folder(index)
    assert not (run / "warnings.txt").exists()
    assert main(["train", "--config", str(config or run / "config.yaml"), "--out", str(out)]) == 0
    assert policy(out) == policy(run)


def unheard(records: Records, trial: int, *, evaluations: int) -> None:
    """Leave a trial's folder as it is when the driver died before the last evaluations."""
    record, total = records[trial], records[trial].curve[-1][0]
    curve = record.curve[:-evaluations]
    percent = 100.0 * curve[-1][0] / total
    records.put(record.updated(state="running", percent=percent, curve=curve))
    (records.run_folder(trial) / "summary.json").unlink()


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_on_a_cluster_survives_an_interruption_and_the_death_of_a_trial(
    tmp_path: Path, search: list[str], ray_cluster: RealCluster
):
    own = {k: v for k, v in ray_cluster.environment.items() if k.startswith("RAY_")}
    cluster, out = ("--address", ray_cluster.gcs), tmp_path / "search"
    longer = ("training.num_iterations=100", "learner.num_cpus=1")
    process = start(*search, str(out), *longer, *cluster, **own)
    read_until(process, "trial 0")
    process.send_signal(signal.SIGINT)
    assert f"sft-rl tune --resume {out}" in output(process, 130)
    process = start("--resume", str(out), *cluster, **own)
    read_until(process, "trial 0")
    wait_for(lambda: ray_cluster.actors(LEARNER))
    os.kill(ray_cluster.actors(LEARNER)[0]["pid"], signal.SIGKILL)
    output(process)
    trials, finals = SearchFolder(out).records()
    assert set(states(trials)) == set(states(finals)) == {"done"}
    assert any(record.attempts == 2 for record in trials.all())
    for record in trials.all():
        check_alone_is_the_same(trials, record.index, tmp_path / str(record.index))


@pytest.mark.ray
def test_optuna_with_asha_workers_and_trials_that_go_wrong(
    tmp_path: Path, tiny_settings: tuple[str, ...], in_users_ray: UsersRay
):
    out = tmp_path / "search"
    workers = ("rollout.num_workers=1", "rollout.num_cpus_per_worker=0.5")
    rates = write_space(tmp_path, {"policy.learning_rate": {"choice": [2e-3, 1e39]}})
    text = in_users_ray(
        "sft-rl", "tune", "swiss_roll", *tiny_settings, *workers,
        f"learner.num_cpus={NUM_CPUS - 0.5}", "--search", rates, "--num-trials", "3",
        "--searcher", "optuna", "--scheduler", "asha", "--final-seeds", "0", "--seed", "4",
        "--out", f"file://{out}",
    )  # fmt: skip
    results = pd.read_csv(out / "results.csv")
    assert len(results) == 3
    failed = results[results["policy.learning_rate"] > 1]
    assert 0 < len(failed) < 3
    assert (failed["state"] == "failed").all()
    # The alarm stops most of them; a policy of NaNs may be refused by the env before it rings.
    reasons = failed["error"].str
    assert (reasons.startswith("training stopped") | reasons.contains("not finite")).all()
    others = results[results["policy.learning_rate"] < 1]
    assert set(others["state"]) <= {"done", "stopped"}
    assert "## Failed" in (out / "report.md").read_text()
    assert "failed" in text
    assert f"report: file://{out}/report.md" in text
    done = next(iter(results[results["state"] == "done"]["trial"]), None)
    if done is not None:
        assert (out / "trials" / f"{done:03d}" / "summary.json").exists()
    assert list((out / "ray" / "session-1").glob("*/events.out.tfevents*"))
    (out / "best-T99.yaml").write_text("of another report")
    again = SearchFolder(f"file://{out}")  # as another machine sees it
    write_report(again.load(), again.path, *again.records())
    again.publish()
    assert not (out / "best-T99.yaml").exists()
    pd.testing.assert_frame_equal(pd.read_csv(out / "results.csv"), results)


@pytest.mark.slow
@pytest.mark.ray
def test_a_population_exchanges_checkpoints(
    tmp_path: Path, tiny_settings: tuple[str, ...], in_users_ray: UsersRay
):
    """Two trials side by side, one with a far smaller rate, so it is behind at every exchange."""
    out, rates = tmp_path / "search", {"policy.learning_rate": {"uniform": [1e-5, 1.2e-3]}}
    lengths = (
        "training.num_iterations=240",  # long beside what one starts later than the other
        "training.eval_every=40",
        "metrics.distance=sliced_wasserstein",  # of which 400 samples leave no ties
    )
    lengths += (f"learner.num_cpus={NUM_CPUS / 2}",)
    sizes = ("--search", write_space(tmp_path, rates), "--num-trials", "2")
    command = ("swiss_roll", *tiny_settings, *lengths, *sizes, "--scheduler", "pbt")
    in_users_ray("sft-rl", "tune", *command, "--out", str(out))
    results = pd.read_csv(out / "results.csv")
    assert list(results["state"]) == ["done"] * 2
    assert "holds the last ones" in (out / "report.md").read_text()
    exchanges = (out / "ray" / "session-1" / "pbt_global.txt").read_text().splitlines()
    assert exchanges

    # One that took over changed rates, and whose end nobody heard of, ends with those rates.
    records, _ = SearchFolder(out).records()
    before = records.all()
    unheard(records, json.loads(exchanges[-1])[5]["trial"]["index"], evaluations=1)
    in_users_ray("sft-rl", "tune", "--resume", str(out))
    assert SearchFolder(out).records()[0].all() == before
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
            ["swiss_roll", "rollout.labels={a: b}", *ONE_TRIAL],
            "rollout.labels: there is no worker to place by them, rollout.num_workers is 0",
        ),
        (
            ["swiss_roll", "rollout.labels={a: b}", "rollout.num_workers=1", *ONE_TRIAL],
            "rollout.labels: no node is labelled a=b: this machine has",
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
        (["--seeds", "2", "--resume", "nowhere"], "give no preset"),
        (
            ["swiss_roll", "--search", "lr_steps", "--num-trials", "0"],
            "--num-trials: must be at least 1",
        ),
        (
            ["swiss_roll", "--search", "lr_steps", "--num-trials", "1", "--seeds", "0"],
            "--seeds: must be at least 1, got 0",
        ),
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
