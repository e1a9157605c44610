"""Jobs on a real Ray head: submitted, followed, left alone, stopped, brought back, refused."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from sft_rl.cli import main

pytestmark = [pytest.mark.ray, pytest.mark.timeout(150)]

FOREVER = "training.num_iterations=1000000"


def submitted(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the ID that `submit` printed."""
    found = re.search(r"^submitted (\S+)$", done.stderr, re.MULTILINE)
    assert found, done.stderr
    return found[1]


def train(*settings: str) -> tuple[str, ...]:
    return ("--", "train", "swiss_roll", *settings)


def status(head, job_id: str) -> str:
    return str(head.get(f"/api/jobs/{job_id}")["status"])


def test_a_job_gives_the_same_policy_as_this_machine(head, sft_rl, tmp_path, tiny_settings):
    assert main(["train", "swiss_roll", *tiny_settings, "--out", str(tmp_path / "local")]) == 0
    worker = [*tiny_settings, "rollout.num_workers=1"]
    storage = head.folder / "runs"
    done = sft_rl("submit", "--storage", str(storage), *train(*worker))
    assert done.returncode == 0, done.stdout + done.stderr
    job_id = submitted(done)
    assert "fine-tuning 3/3" in done.stdout
    assert "\x1b" not in done.stdout, "plain lines"

    fetched = sft_rl("jobs", "fetch", job_id)
    assert fetched.returncode == 0, fetched.stderr
    folder = tmp_path / "runs" / job_id
    summaries = [json.loads((f / "summary.json").read_text()) for f in (folder, tmp_path / "local")]
    assert summaries[0]["policy_sha256"] == summaries[1]["policy_sha256"]
    there = {p.relative_to(storage / job_id) for p in (storage / job_id).rglob("*")}
    assert there == {p.relative_to(folder) for p in folder.rglob("*")}
    assert [p for p in folder.parent.iterdir() if p != folder] == [], "nothing else is left"

    again = sft_rl("jobs", "fetch", job_id)
    assert again.returncode == 2
    assert "exists already" in again.stderr

    logs = sft_rl("jobs", "logs", job_id)
    assert logs.stdout == done.stdout
    jobs = json.dumps(head.get("/api/jobs/"))
    assert '"fetch-' not in jobs, "the helper's job is gone"
    seen = [done.stdout, done.stderr, jobs]
    seen += [p.read_bytes().decode("latin-1") for p in folder.rglob("*") if p.is_file()]
    assert not any(head.token in text for text in seen), "the token has leaked"


def interrupted(head, tmp_path, arguments: tuple[str, ...], answer: str) -> tuple[int, str]:
    """Press Ctrl-C at a terminal when the job trains, answer; return exit code and stderr."""
    terminal, stdin = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "sft_rl", *arguments],
        env=head.environment,
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


def test_ctrl_c_leaves_the_job_or_stops_it(head, sft_rl, tmp_path, tiny_settings):
    storage = ("--storage", str(head.folder / "runs"))
    submit = ("submit", *storage, *train(*tiny_settings, FOREVER))
    code, errors = interrupted(head, tmp_path, submit, "")
    assert code == 130, errors
    assert "Stop it? [y/N]" in errors
    job_id = re.findall(r"submitted (\S+)", errors)[0]
    assert status(head, job_id) == "RUNNING"
    assert re.search(rf"^{job_id} +RUNNING .* sft-rl train", sft_rl("jobs", "list").stdout, re.M)
    refused = sft_rl("jobs", "fetch", job_id)
    assert refused.returncode == 2
    assert "is RUNNING; wait for its end" in refused.stderr

    code, errors = interrupted(head, tmp_path, ("jobs", "logs", job_id, "--follow"), "y")
    assert code == 143, errors
    assert status(head, job_id) == "STOPPED"


def test_a_detached_job_is_stopped(head, sft_rl, tiny_settings):
    storage = str(head.folder / "runs")
    done = sft_rl("submit", "--detach", "--storage", storage, *train(*tiny_settings, FOREVER))
    assert done.returncode == 0
    job_id = done.stdout.strip()
    assert job_id == submitted(done)
    stopped = sft_rl("jobs", "stop", job_id)
    assert stopped.stdout == f"{job_id} is STOPPED\n"
    assert sft_rl("jobs", "stop", job_id).stdout == f"{job_id} was already STOPPED\n"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RAY_AUTH_TOKEN_PATH": "", "HOME": "/nonexistent"}, "a token is needed"),
        ({"RAY_AUTH_TOKEN": "0123456789abcdef" * 4}, "the token is wrong"),
    ],
)
@pytest.mark.parametrize("command", [("submit", *train()), ("jobs", "list")])
def test_without_the_token_nothing_is_done(head, sft_rl, environment, said, command):
    before = len(head.get("/api/jobs/"))
    refused = sft_rl(*command, **environment)
    assert refused.returncode == 3
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert "0123456789abcdef" not in refused.stderr
    assert len(head.get("/api/jobs/")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--gpus", "1", *train()), "no node has the 1 CPU and 1 GPU asked for: 127.0.0.1"),
        (("--cpus", "64", *train()), "no node has the 64 CPUs asked for: 127.0.0.1"),
        (
            train("rollout.num_workers=3"),
            "rollout.num_workers: no room for 3 workers with 1 CPU each beside the learner's 1 CPU",
        ),
    ],
)
def test_what_no_node_has_is_not_waited_for(sft_rl, arguments, said):
    refused = sft_rl("submit", *arguments)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert "has 2 CPUs" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_folder_that_the_cluster_cannot_write(sft_rl, tiny_settings):
    done = sft_rl("submit", *train(*tiny_settings, "--out", "/proc/nowhere"))
    assert done.returncode == 2
    assert "--out: cannot write to /proc/nowhere" in done.stdout


@pytest.mark.slow
def test_an_environment_that_does_not_build(sft_rl, tmp_path):
    (tmp_path / "env.yaml").write_text("pip: [/nonexistent/package.whl]")
    done = sft_rl("submit", "--env", "env.yaml", *train("rollout.num_workers=1"))
    assert done.returncode == 4, done.stdout + done.stderr
    assert "did not run to its end: runtime_env setup failed" in done.stderr
    assert "ERROR: package.whl is not a valid wheel filename" in done.stderr


def test_an_unknown_job(sft_rl):
    done = sft_rl("jobs", "fetch", "train-00000000")
    assert done.returncode == 2
    assert "has no job 'train-00000000'" in done.stderr
