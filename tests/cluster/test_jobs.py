"""Jobs on a real Ray cluster: sent, followed, left alone, stopped, brought back, refused."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from urllib.error import HTTPError

import pytest
import yaml
from real_cluster import RealCluster, wait_for

from sft_rl.cli import main

pytestmark = pytest.mark.ray

SHORT = ("training.num_iterations=200", "training.eval_every=50", "training.checkpoint_every=50")
SPREAD = ("rollout.num_workers=3", "rollout.shards_per_batch=4")
# Nothing moves, or the samples of a run without an end would fly apart, which ends it.
FOREVER = ("training.num_iterations=1000000", "policy.learning_rate=1e-9")


def submitted(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the ID that `submit` printed."""
    found = re.search(r"^submitted (\S+)$", done.stderr, re.MULTILINE)
    assert found, done.stderr
    return found[1]


def train(*settings: str) -> tuple[str, ...]:
    return ("--", "train", "swiss_roll", *settings)


def tune(*settings: str) -> tuple[str, ...]:
    sizes = ("--search", "lr_steps", "--num-trials", "1")
    return ("--", "tune", "swiss_roll", *settings, *sizes)


def status(ray_cluster: RealCluster, job_id: str) -> str:
    return str(ray_cluster.get(f"/api/jobs/{job_id}")["status"])


def policy(folder: Path) -> str:
    return str(json.loads((folder / "summary.json").read_text())["policy_sha256"])


@pytest.fixture(scope="module")
def settings(tiny_settings) -> tuple[str, ...]:
    return (*tiny_settings, *SHORT, *SPREAD)


@pytest.fixture(scope="module")
def local(tmp_path_factory, settings) -> str:
    """The policy that this machine gives, without workers."""
    out = tmp_path_factory.mktemp("local") / "run"
    here = ["train", "swiss_roll", *settings, "rollout.num_workers=0", "--out", str(out)]
    assert main(here) == 0
    return policy(out)


def test_a_job_outlives_a_node_and_comes_back_with_the_policy_of_this_machine(
    ray_cluster, sft_rl, tmp_path, settings, local
):
    storage = ray_cluster.folder / "runs"
    ray_cluster.fill()
    done = sft_rl("submit", "--detach", "--storage", str(storage), *train(*settings))
    job_id = submitted(done)
    wait_for(lambda: (storage / job_id / "metrics.csv").exists())

    def places() -> set[str]:
        return {actor["node_id"] for actor in ray_cluster.actors("RolloutWorker")}

    wait_for(lambda: len(places()) == 3)  # the first worker draws before all have started
    workers, driver = places(), ray_cluster.get(f"/api/jobs/{job_id}")["driver_node_id"]
    heads = {node["node_id"] for node in ray_cluster.state("nodes") if node["is_head_node"]}
    ray_cluster.kill_node((workers - heads - {driver}).pop())
    assert not (storage / job_id / "summary.json").exists()
    followed = sft_rl("jobs", "logs", job_id, "--follow")
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert "fine-tuning 200/200" in followed.stdout
    coloured = [line for line in followed.stdout.splitlines() if "\x1b" in line]
    assert not [line for line in coloured if "raylet" not in line], "ours are plain"

    fetched = sft_rl("jobs", "fetch", job_id)
    assert fetched.returncode == 0, fetched.stderr
    folder = tmp_path / "runs" / job_id
    assert policy(folder) == local
    there = {p.relative_to(storage / job_id) for p in (storage / job_id).rglob("*")}
    assert there == {p.relative_to(folder) for p in folder.rglob("*")}
    assert [p for p in folder.parent.iterdir() if p != folder] == [], "nothing else is left"

    again = sft_rl("jobs", "fetch", job_id)
    assert again.returncode == 2
    assert "exists already" in again.stderr

    assert sft_rl("jobs", "logs", job_id).stdout == followed.stdout
    jobs = json.dumps(ray_cluster.get("/api/jobs/"))
    assert '"fetch-' not in jobs, "the helper's job is gone"
    seen = [done.stdout, done.stderr, followed.stdout, jobs]
    seen += [p.read_bytes().decode("latin-1") for p in folder.rglob("*") if p.is_file()]
    assert not any(ray_cluster.token in text for text in seen), "the token has leaked"


@pytest.mark.slow
def test_trials_of_a_search_run_on_several_nodes(ray_cluster, sft_rl, tmp_path, tiny_settings):
    rates = {"policy.learning_rate": {"loguniform": [1e-4, 1e-3]}}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"space": rates}))
    own = ("rollout.num_workers=1", "training.num_iterations=30")
    arguments = ("tune", "swiss_roll", *tiny_settings, *own, "--search", "space.yaml")
    storage = ray_cluster.folder / "searches"
    done = sft_rl(
        "submit", "--detach", "--storage", str(storage), "--", *arguments, "--num-trials", "3",
        "--final-seeds", "0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    job_id, nodes = submitted(done), set()
    while status(ray_cluster, job_id) in ("PENDING", "RUNNING"):
        for class_name in ("ImplicitFunc", "RolloutWorker"):  # learners and their workers
            nodes |= {(class_name, a["node_id"]) for a in ray_cluster.actors(class_name)}
        time.sleep(0.5)
    logs = sft_rl("jobs", "logs", job_id, "--follow")
    assert logs.returncode == 0, logs.stdout + logs.stderr
    assert "[3/3]" in logs.stdout
    assert len({node for name, node in nodes if name == "ImplicitFunc"}) >= 2, nodes
    assert len({node for name, node in nodes if name == "RolloutWorker"}) >= 2, nodes
    assert (storage / job_id / "best-T4.yaml").is_file()


def interrupted(
    ray_cluster, tmp_path, arguments: tuple[str, ...], answer: str, **environment: str
) -> tuple[int, str]:
    """Press Ctrl-C at a terminal when the job trains, answer; return exit code and stderr."""
    terminal, stdin = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "sft_rl", *arguments],
        env=ray_cluster.environment | environment,
        cwd=tmp_path,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("fine-tuning"):
            break
    process.send_signal(signal.SIGINT)
    os.write(terminal, f"{answer}\n".encode())
    _, errors = process.communicate()
    os.close(stdin)
    os.close(terminal)
    return process.returncode, errors


def with_a_tag(scraped: str, tags: tuple[str, ...]) -> set[str]:
    """Return the names of the metrics that bear one of these tags."""
    lines = [line for line in scraped.splitlines() if any(tag in line for tag in tags)]
    return {line.split("{")[0] for line in lines}


def holding(folder: Path, text: str) -> list[Path]:
    """Files in which a text is."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    return [p for p in files if text.encode() in p.read_bytes()]


SECRET = "open-sesame"
JUDGE = f"""
import os, time

def reward(x):
    time.sleep(0.5)  # a job without an end leaves the cores to the tests beside it
    key = os.environ["JUDGE_KEY"]
    assert key.encode().hex() == {SECRET.encode().hex()!r}
    return x[:, 0]
"""


@pytest.fixture(scope="module")
def left_alone(ray_cluster, tmp_path_factory, tiny_settings) -> str:
    """A job with a secret, which Ctrl-C left running."""
    folder = tmp_path_factory.mktemp("judge")
    (folder / "judge.py").write_text(JUDGE)
    scored = "reward.terms=[critic, {use: judge:reward, num_scorers: 1, num_cpus_per_scorer: 0.5}]"
    command = train(*tiny_settings, *FOREVER, "rollout.num_workers=1", scored)
    storage = ("--storage", str(ray_cluster.folder / "runs"))
    submit = ("submit", "--secret", "JUDGE_KEY", *storage, *command)
    missing = ray_cluster.run(*submit, cwd=folder)
    assert missing.returncode == 2
    assert "--secret: got 'JUDGE_KEY', which is no variable of this environment" in missing.stderr
    code, errors = interrupted(ray_cluster, folder, submit, "", JUDGE_KEY=SECRET)
    assert code == 130, errors
    assert "Stop it? [y/N]" in errors
    return str(re.findall(r"submitted (\S+)", errors)[0])


def test_ctrl_c_leaves_a_job_that_is_listed_and_not_fetched(ray_cluster, sft_rl, left_alone):
    assert status(ray_cluster, left_alone) == "RUNNING"
    listed = sft_rl("jobs", "list").stdout
    assert re.search(rf"^{left_alone} +RUNNING .* sft-rl train", listed, re.M)
    refused = sft_rl("jobs", "fetch", left_alone)
    assert refused.returncode == 2
    assert "is RUNNING; wait for its end" in refused.stderr


def test_prometheus_sees_what_the_dashboard_shows(ray_cluster, left_alone):
    dashboard = (files("cluster") / "settings" / "grafana.json").read_text()
    shown = set(re.findall(r"ray_sft_rl_\w+(?=[\[{])", dashboard))
    assert len(shown) > 8
    tags = (f'preset="swiss_roll",run="{left_alone}"', f'worker="sft-rl/{left_alone}/rollout-1"')
    wait_for(lambda: shown <= with_a_tag(ray_cluster.scraped(), tags))


def test_a_secret_is_in_no_list(ray_cluster, left_alone):
    lists = [ray_cluster.get("/api/jobs/")]
    for what in ("jobs", "actors", "tasks", "workers", "nodes", "objects", "runtime_envs"):
        lists.append(ray_cluster.get(f"/api/v0/{what}?detail=true&limit=10000"))
    everything = json.dumps(lists)
    entrypoint = ray_cluster.get(f"/api/jobs/{left_alone}")["entrypoint"]
    (key,) = re.findall(r"_sft_rl_\w+.zip", entrypoint)
    with pytest.raises(HTTPError, match="404") as gone:
        ray_cluster.get(f"/api/packages/gcs/{key}")
    gone.value.close()  # else its socket warns later, in another test
    assert "JUDGE_KEY" in everything
    assert SECRET not in everything


def test_ctrl_c_stops_it_if_told_and_its_secret_is_in_no_file(
    ray_cluster, sft_rl, tmp_path, left_alone
):
    follow = ("jobs", "logs", left_alone, "--follow")
    code, errors = interrupted(ray_cluster, tmp_path, follow, "y")
    assert code == 143, errors
    assert status(ray_cluster, left_alone) == "STOPPED"
    assert holding(ray_cluster.folder, SECRET) == [], "of logs or others"


def test_a_job_that_was_just_sent_is_stopped(sft_rl, ray_cluster, tiny_settings):
    storage = ("--storage", str(ray_cluster.folder / "runs"))
    job_id = submitted(sft_rl("submit", "--detach", *storage, *train(*tiny_settings, *FOREVER)))
    assert sft_rl("jobs", "stop", job_id).stdout == f"{job_id} is STOPPED\n"
    assert sft_rl("jobs", "stop", job_id).stdout == f"{job_id} was already STOPPED\n"


@pytest.mark.parametrize(
    ("command", "environment", "said"),
    [
        (
            ("submit", *train()),
            {"RAY_AUTH_TOKEN_PATH": "", "HOME": "/nonexistent"},
            "a token is needed",
        ),
        (("jobs", "list"), {"RAY_AUTH_TOKEN": "0123456789abcdef" * 4}, "the token is wrong"),
    ],
)
def test_without_the_token_nothing_is_done(ray_cluster, sft_rl, command, environment, said):
    before = len(ray_cluster.get("/api/jobs/"))
    refused = sft_rl(*command, **environment)
    assert refused.returncode == 3
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert "0123456789abcdef" not in refused.stderr
    assert len(ray_cluster.get("/api/jobs/")) == before


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RAY_AUTH_TOKEN_PATH": "", "HOME": "/nonexistent"}, "it asks for a token"),
        ({"RAY_AUTH_TOKEN": "0123456789abcdef" * 4}, "its token is another"),
    ],
    ids=["no token", "a wrong one"],
)
def test_a_run_that_may_not_join_trains_nothing_and_leaves_nothing(
    ray_cluster, sft_rl, tmp_path, tiny_settings, environment, said
):
    settings = (*tiny_settings, "rollout.num_workers=1", f"ray.address={ray_cluster.gcs}")
    refused = sft_rl("train", "swiss_roll", *settings, "--out", "run", **environment)
    assert (refused.returncode, refused.stdout) == (2, "")
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"sft-rl: ray.address: cannot join {ray_cluster.gcs}: {said}; ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--gpus", "1", *train()), "no node has the 1 GPU asked for: 127.0.0.1"),
        (
            train("rollout.num_workers=7"),
            "rollout.num_workers: no room for 7 workers with 1 CPU each: 127.0.0.1",
        ),
        (tune("rollout.num_workers=1", "learner.num_gpus=1"), "no node has the 1 CPU and 1 GPU"),
    ],
)
def test_what_no_node_has_is_not_waited_for(sft_rl, arguments, said):
    refused = sft_rl("submit", *arguments)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert "has 2 CPUs" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_search_has_a_learner_in_each_trial(sft_rl):
    refused = sft_rl("submit", "--cpus", "2", *tune())
    assert refused.returncode == 2
    assert "set learner.num_cpus and learner.num_gpus" in refused.stderr


def test_a_folder_that_the_cluster_cannot_write(sft_rl, tiny_settings):
    done = sft_rl("submit", *train(*tiny_settings, "--out", "/proc/nowhere"))
    assert done.returncode == 2
    assert "--out: cannot write to /proc/nowhere" in done.stdout


def test_an_unknown_job(sft_rl):
    done = sft_rl("jobs", "fetch", "train-00000000")
    assert done.returncode == 2
    assert "has no job 'train-00000000'" in done.stderr
