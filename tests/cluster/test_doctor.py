"""The doctor finds what would stop a job, and says what to do."""

import copy

import pytest

from cluster.doctor import GIB, diagnose

OWN = {"Python": "3.11.9", "Ray": "2.60.0", "torch": "2.13.0", "sft_rl": "0.1.0"}
NODE = {
    "name": "10.0.0.1 (abcdef)",
    "cpus": 8.0,
    "gpus": 1.0,
    "versions": OWN,
    "cuda": "13.0",
    "memory": 64 * GIB,
    "shm": 16 * GIB,
    "skew": 0.0,
    "reads": True,
}
HEALTHY = {
    "versions": OWN,
    "storage": {"folder": "/shared", "problem": None},
    "free": {"CPU": 8.0, "GPU": 1.0},
    "nodes": [NODE],
    "broadcast": {"MiB": 64, "seconds": 0.1},
}


def test_a_healthy_cluster_needs_nothing():
    findings = list(diagnose(HEALTHY))
    assert [f.check for f in findings] == [
        "versions",
        "storage",
        "node 10.0.0.1 (abcdef)",
        "free",
        "weights",
    ]
    assert {f.level for f in findings} == {"ok"}
    assert {f.advice for f in findings} == {""}


@pytest.mark.parametrize(
    ("where", "value", "level", "found"),
    [
        ("storage.problem", "Permission denied", "stop", "/shared: Permission denied"),
        ("free.CPU", 0.0, "warn", "0 of 8 CPUs, 1 of 1 GPUs"),
        ("broadcast.seconds", 6.4, "warn", "64 MiB to 1 node(s) in 6.40 s"),
        ("nodes.0.cpus", 0.0, "stop", "1 of 1 GPUs"),
        ("nodes.0.error", "ModuleNotFoundError", "stop", "cannot run the project"),
        ("nodes.0.versions", OWN | {"torch": "2.9.0"}, "stop", "torch 2.9.0, not 2.13.0"),
        ("nodes.0.cuda", None, "stop", "GPUs, but a torch without CUDA"),
        ("nodes.0.skew", -3.0, "warn", "its clock is off by -3.0 s"),
        ("nodes.0.memory", GIB, "warn", "1.0 GiB memory free"),
        ("nodes.0.shm", GIB // 16, "warn", "0.1 GiB free in /dev/shm"),
        ("nodes.0.reads", False, "warn", "does not see the storage"),
    ],
)
def test_each_trouble_is_found(where, value, level, found):
    report = copy.deepcopy(HEALTHY)
    *parents, last = where.split(".")
    section = report
    for key in parents:
        section = section[int(key) if key.isdigit() else key]
    section[last] = value
    troubles = [f for f in diagnose(report) if f.level != "ok"]
    assert any(f.level == level and found in f.found for f in troubles)
    assert all(f.advice for f in troubles)


@pytest.mark.ray
def test_a_cluster_is_looked_at_from_inside(ray_cluster, sft_rl):
    ray_cluster.fill()
    storage = ray_cluster.folder / "doctor"
    done = sft_rl("doctor", "--storage", str(storage))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stop" not in done.stdout
    for said in ("has mode 0600", "written and read back", "6 of 6 CPUs", "64 MiB to 3 node(s)"):
        assert said in done.stdout
    assert list(storage.iterdir()) == []
    assert not any("doctor-" in str(job) for job in ray_cluster.get("/api/jobs/"))


@pytest.mark.ray
@pytest.mark.parametrize("variable", ["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"])
def test_a_cluster_that_is_not_there_would_stop_a_job(sft_rl, variable):
    done = sft_rl("doctor", **{"RAY_API_SERVER_ADDRESS": "", variable: "http://127.0.0.1:1"})
    assert done.returncode == 1
    assert "Connection refused" in done.stdout


@pytest.mark.slow
@pytest.mark.ray
def test_this_machine_is_looked_at_on_loopback(sft_rl):
    done = sft_rl("doctor", RAY_API_SERVER_ADDRESS="", RAY_AUTH_TOKEN_PATH="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "node 127.0.0.1" in done.stdout
