"""What is decided before a cluster is asked, and what is accepted from one."""

import argparse
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cluster.cli import add_cluster_commands
from cluster.connection import job_server
from cluster.package import MAX_BYTES, stage
from cluster.submit import job_command, runtime_environment
from sft_rl.cli import parse
from sft_rl.config import RolloutConfig
from sft_rl.config.files import dump_config, load_config
from sft_rl.distributed.placement import Bundle, Needs, check_room, without_autoscaler
from sft_rl.errors import UserError

TOKEN = "0123456789abcdef" * 4


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sft_rl", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_job_gets_a_run_folder_that_outlives_it():
    command = job_command(["train", "swiss_roll", "seed=1"], parse, out="~/runs/a b")
    expected = "python -m sft_rl train swiss_roll seed=1 --out ~/'runs/a b'"
    assert command.entrypoint == expected
    assert command.needs.rollout is not None


def test_a_run_folder_may_be_on_storage_with_a_url():
    command = job_command(["train", "swiss_roll"], parse, out="s3://bucket/runs/1")
    assert command.entrypoint == "python -m sft_rl train swiss_roll --out s3://bucket/runs/1"
    assert command.out == "s3://bucket/runs/1"
    search = ["tune", "swiss_roll", "--search", "lr_steps", "--num-trials", "1"]
    assert job_command(search, parse, out="s3://bucket/runs/1").out == "s3://bucket/runs/1"
    resumed = ["tune", "--resume", "s3://bucket/runs/1"]
    assert job_command(resumed, parse, out="unused").out == "s3://bucket/runs/1"


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ("bucket/runs", "it must start with /, ~/ or be a URL"),
        ("s3://key:secret@bucket/runs", "credentials belong in the nodes' environment"),
        ("memory://runs", "got memory://runs; it ends with the process"),
        ("file://runs", "got file://runs; allowed: an absolute path, as file:///shared/runs"),
    ],
)
def test_what_storage_is_not(capsys: pytest.CaptureFixture[str], storage: str, words: str):
    subparsers = argparse.ArgumentParser().add_subparsers()
    add_cluster_commands(subparsers, parse=parse)
    with pytest.raises(SystemExit) as left:
        subparsers.choices["submit"].parse_args(["--storage", storage, "--", "train", "swiss_roll"])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert "secret" not in error


@pytest.mark.parametrize("out", [["--out", "/shared/x"], ["--out=/shared/x"]])
def test_an_own_run_folder_is_kept(out):
    command = job_command(["train", *out, "swiss_roll"], parse, out="~/runs/1")
    assert command.entrypoint == f"python -m sft_rl train {' '.join(out)} swiss_roll"
    assert command.out == "/shared/x"


def test_files_that_a_command_reads_travel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("best.yaml").write_text(dump_config(load_config("two_moons", ["rollout.num_workers=3"])))
    Path("space.yaml").write_text("space: {policy.learning_rate: {uniform: [0.1, 0.2]}}")

    def needs(*words: str) -> Needs:
        return job_command(words, parse, out="/r").needs

    best = needs("train", "--config", "best.yaml", "data.path=a.npy")
    assert best.files == ("best.yaml", "a.npy")
    assert best.rollout == RolloutConfig(num_workers=3)
    assert needs("train", "swiss_roll", "data.path=/shared/a.npy").files == ()
    Path("mine.py").touch()
    Path("net/unet").mkdir(parents=True)
    Path("judge.pt").touch()
    named = ("pretrained.path=net/unet", "metrics.inception_path=features.pth", "algorithm=mine:A")
    named += ("data.factory=elsewhere:points", "options.judge=judge.pt", "options.seeds=3")
    files = ("features.pth", "net/unet", "judge.pt", "mine.py")
    assert needs("train", "swiss_roll", *named).files == files
    assert needs("train", "swiss_roll", "pretrained.path=google/ddpm-cifar10-32").files == ()
    tune = ("tune", "swiss_roll", "data.path=a.npy", "--num-trials", "2", "--search")
    assert needs(*tune, "space.yaml").files == ("a.npy", "space.yaml")
    assert needs(*tune, "lr_steps").files == ("a.npy",)


def test_a_search_goes_on_in_its_own_folder():
    command = job_command(["tune", "--resume", "/shared/s"], parse, out="/r")
    assert command.entrypoint == "python -m sft_rl tune --resume /shared/s"
    assert command.out == "/shared/s"


def test_nothing_of_a_command_reaches_the_shell():
    words = ["evaluate", "/runs/$(date); `id`'"]
    entrypoint = job_command(words, parse, out="").entrypoint
    echoed = subprocess.run(["sh", "-c", f"printf '%s\\n' {entrypoint}"], capture_output=True)
    assert echoed.stdout.decode().splitlines()[-1] == words[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "submit: a command is missing after --: one of train, tune, pretrain, evaluate"),
        (["trian"], "submit: got 'trian' after --; did you mean 'train'?"),
        (["sample", "x"], "submit: got 'sample' after --"),
        (["train", "swiss_rol"], "preset: 'swiss_rol' is unknown; did you mean 'swiss_roll'?"),
        (["train", "swiss_roll", "sead=1"], "sead: unknown setting; did you mean 'seed'?"),
        (["train", "swiss_roll", "--out", "runs/x"], "--out: got runs/x; on the cluster it must"),
        (["train", "swiss_roll", "--mlflow", "mlruns"], "--mlflow: got mlruns; on the cluster it"),
        (["evaluate", "runs/x"], "RUN: got runs/x; on the cluster it must be an absolute path"),
        (["train", "swiss_roll", f"data.path={TOKEN}"], "word 3 after --: looks like a token"),
        (["train"], "PRESET: is missing"),
        (["train", "--config", "none.yaml"], "config: cannot read none.yaml"),
        (["tune", "--resume", "runs/s"], "--resume: got runs/s; on the cluster it must be"),
        (["tune", "swiss_roll", "--num-trials", "2"], "--search: is missing"),
        (["tune", "swiss_roll", "--num-trials", "0", "--search", "lr_steps"], "--num-trials: must"),
    ],
)
def test_a_wrong_command_is_refused_before_anything_is_sent(words, said):
    with pytest.raises(UserError) as caught:
        job_command(words, parse, out="~/runs/1")
    assert str(caught.value).startswith(said)
    assert TOKEN not in str(caught.value)


def test_only_what_is_needed_travels(tmp_path, monkeypatch):
    here, package = tmp_path / "here", tmp_path / "package"
    (here / "mine" / "__pycache__").mkdir(parents=True)
    package.mkdir()
    for name in ("points.npy", "secret.txt", "mine/critic.py", "mine/.env", "mine/__pycache__/c"):
        (here / name).write_text("x")
    monkeypatch.chdir(here)
    words = ["train", "swiss_roll", "data.path=points.npy"]
    files = job_command(words, parse, out="~/runs/1").needs.files
    stage(package, [*files, "mine"])
    there = {p.relative_to(package).as_posix() for p in package.rglob("*") if p.is_file()}
    own = {name for name in there if name.split("/")[0] in ("sft_rl", "envs", "tuning", "cluster")}
    assert there - own == {"points.npy", "mine/critic.py"}
    assert {"sft_rl/__main__.py", "sft_rl/config/presets/swiss_roll.yaml"} <= own
    assert {name.rsplit(".", 1)[-1] for name in own} == {"py", "yaml", "typed"}
    done = subprocess.run([sys.executable, "-m", "sft_rl", "presets"], cwd=package)
    assert done.returncode == 0


def test_a_large_package_is_refused_with_its_largest_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, size in (("large.npy", MAX_BYTES), ("small.npy", 10 * 2**20)):
        with Path(name).open("wb") as file:
            file.truncate(size)
    (tmp_path / "package").mkdir()
    with pytest.raises(UserError) as caught:
        stage(tmp_path / "package", ["large.npy", "small.npy"])
    assert re.match(
        r"package: 11\d\.\d MiB, allowed: 100 MiB; the largest files: "
        r"large.npy \(100.0 MiB\), small.npy \(10.0 MiB\), ",
        str(caught.value),
    )
    assert list((tmp_path / "package").iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "nowhere"])
def test_what_cannot_be_included(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^{name}: "):
        stage(tmp_path, [name])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pipp: [x]", "pipp: unknown key; did you mean 'pip'?"),
        ("[pip]", "expected keys and values, got list"),
        ("{pip: [x], uv: [y]}", "pip"),
        ("env_vars: {A: 1}", "env_vars"),
        ("env_vars: {RAY_AUTH_TOKEN: x}", "env_vars: RAY_AUTH… is the nodes' own"),
        (f"env_vars: {{A: {TOKEN}}}", "env_vars.A: looks like a token"),
        ("a: [", "not valid YAML at line 1"),
    ],
)
def test_a_wrong_environment_is_refused(tmp_path, text, said):
    file = tmp_path / "env.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        runtime_environment(str(file))
    assert said in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_the_job_server_is(monkeypatch):
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert job_server(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert job_server(None) == "http://127.0.0.1:8265", "not the address of a job server"
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.1:8265/")
    assert job_server(None) == "http://10.0.0.1:8265"
    assert job_server("head:8265") == "http://head:8265"
    for wrong in ("ray://head:10001", "http://", "http://head:x", "http://user:secret@head:8265"):
        with pytest.raises(UserError, match="allowed: the job server, as http://HOST") as caught:
            job_server(wrong)
        assert "secret" not in str(caught.value)


@contextmanager
def server(code: int, body: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.mark.parametrize(
    ("code", "body", "said"),
    [
        (200, json.dumps({"ray_version": "2.9.3"}), "runs Ray 2.9.3; allowed: 2.60 or later"),
        (200, "<html>", "the job server at"),
        (404, "", "the job server at"),
    ],
)
def test_a_cluster_that_does_not_fit(code, body, said):
    with server(code, body) as address:
        done = run("jobs", "list", "--address", address, RAY_AUTH_TOKEN=TOKEN)
    assert done.returncode == 3
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_cluster_at_the_address():
    done = run("submit", "--address", "http://127.0.0.1:1", "--", "train", "swiss_roll")
    assert done.returncode == 3
    assert "no cluster at http://127.0.0.1:1: Connection refused" in done.stderr


NODES = {"a": Bundle(4, 0), "b": Bundle(8, 2)}


@pytest.mark.parametrize(
    ("learner", "workers", "fits"),
    [
        (Bundle(1, 0), dict(num_workers=11), True),
        (Bundle(1, 0), dict(num_workers=12), False),
        (Bundle(1, 1), dict(num_workers=2, num_gpus_per_worker=0.5), True),
        (Bundle(1, 1), dict(num_workers=3, num_gpus_per_worker=0.5), False),
        (Bundle(8, 2), dict(num_workers=4), True),
        (Bundle(9, 0), dict(num_workers=0), False),
        (Bundle(0, 3), dict(num_workers=0), False),
    ],
)
def test_room_for_a_job(learner, workers, fits):
    if fits:
        check_room(NODES, learner, RolloutConfig(**workers))
        return
    with pytest.raises(UserError, match="a has 4 CPUs; b has 8 CPUs and 2 GPUs"):
        check_room(NODES, learner, RolloutConfig(**workers))


def test_labels_narrow_where_there_is_room():
    nodes = {"a": Bundle(4, 0, {"zone": "x"}), "b": Bundle(8, 2, {"zone": "y", "spot": "yes"})}
    check_room(nodes, Bundle(1, 1), RolloutConfig(num_workers=3, labels={"zone": "x"}))
    check_room(nodes, Bundle(4, 0), RolloutConfig(num_workers=8, labels={"spot": "yes"}))
    with pytest.raises(UserError, match="no room for 5 workers with 1 CPU labelled zone=x each"):
        check_room(nodes, Bundle(1, 1), RolloutConfig(num_workers=5, labels={"zone": "x"}))
    nowhere = r"learner.labels: no node is labelled zone=z: a has 4 CPUs labelled zone=x; b has 8"
    with pytest.raises(UserError, match=nowhere):
        check_room(nodes, Bundle(1, 0, {"zone": "z"}), None)


def test_an_autoscaler_may_find_room_later():
    bare = [f"node_{'0123abcd' * 7}", f"node{'4567Cdef' * 7}"]
    assert without_autoscaler(bare)
    assert not without_autoscaler([*bare, "workers"])
    assert not without_autoscaler(["node_gpu"])
    assert not without_autoscaler([])


def test_every_command_has_a_parser():
    subparsers = argparse.ArgumentParser().add_subparsers()
    add_cluster_commands(subparsers, parse=parse)
    assert {"submit", "jobs", "doctor", "cluster"} == set(subparsers.choices)
