"""`ray up` files, Slurm scripts and Dockerfiles against the tools that read them."""

import argparse
import io
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import ray.autoscaler
import yaml
from dockerfile_parse import DockerfileParser
from ray.autoscaler._private.util import prepare_config, validate_config

import cluster.config
from cluster.cli import add_cluster_commands
from cluster.config import ClusterSettings, load_settings
from cluster.dockerfile import COPIED, PACKAGES
from cluster.render import TARGETS, render
from sft_rl.errors import UserError

ROOT = Path(__file__).parents[2]
EXAMPLES = Path(cluster.config.__file__).parent / "settings"
RAY_SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
RAY_UP = ("on-premise", "aws", "gcp")
TARGETS_OF = {
    **dict.fromkeys(RAY_UP, ("ray-up", "dockerfile")),
    "kuberay": ("kuberay-cluster", "kuberay-job", "kuberay-storage", "dockerfile"),
    "slurm": ("slurm", "dockerfile"),
}
ALL = [(name, target) for name, targets in TARGETS_OF.items() for target in targets]


def settings(name: str, **changes: Any) -> ClusterSettings:
    return load_settings(EXAMPLES / f"{name}.yaml").model_copy(update=changes)


def ray_up(name: str, **changes: Any) -> dict[str, Any]:
    return yaml.safe_load(render(settings(name, **changes), "ray-up"))


def tool(name: str) -> str:
    """Return the path of a program that was installed beside this Python."""
    return str(Path(sys.executable).parent / name)


def shellcheck(script: str) -> str:
    """Return shellcheck's complaints; a user's venv (SC1091) is not there to be read."""
    command = [tool("shellcheck"), "--shell=bash", "--exclude=SC1091", "-"]
    return subprocess.run(command, input=script, capture_output=True, text=True).stdout


def hadolint(text: str) -> str:
    command = [tool("hadolint"), "--no-color", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True).stdout


def test_every_example_is_tried():
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == set(TARGETS_OF)
    assert {target for _, target in ALL} == set(TARGETS)


@pytest.mark.parametrize(("name", "target"), ALL)
def test_no_secret_is_rendered(name, target, tmp_path, monkeypatch):
    token = "feedc0de" * 8
    (tmp_path / "token").write_text(token)
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    text = render(settings(name, token_file=str(tmp_path / "token")), target)
    assert not re.search(r"[0-9a-fA-F]{32,}", text)
    assert not re.search(r"RAY_AUTH_TOKEN=", text)


@pytest.mark.parametrize(("name", "target"), ALL)
def test_rendering_is_repeatable(name, target):
    assert render(settings(name), target) == render(settings(name), target)


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_accepts_its_cluster_file(name):
    config = ray_up(name)
    jsonschema.validate(config, RAY_SCHEMA)
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["docker"]["image"] == "registry.example.com/sft-rl:0.1.0"


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_refuses_a_misspelt_key(name):
    config = ray_up(name)
    config["max_worker"] = config.pop("max_workers")
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate(config, RAY_SCHEMA)


@pytest.mark.parametrize("name", RAY_UP)
@pytest.mark.parametrize("role", ["head", "worker"])
def test_start_commands_are_sound_and_ask_for_the_token(name, role):
    commands = ray_up(name, activate=("source venv/bin/activate",))[f"{role}_start_ray_commands"]
    assert shellcheck("\n".join(commands)) == ""
    for command in commands:
        assert command.startswith("source venv/bin/activate && export RAY_AUTH_MODE=token && ")
    assert commands[0].endswith("ray stop")
    assert "ray start" in commands[1]


@pytest.mark.parametrize("name", RAY_UP)
def test_the_token_file_is_mounted_for_its_owner_only(name):
    config = ray_up(name, token_file="/secure/token")
    assert config["file_mounts"] == {"~/.ray/auth_token": "/secure/token"}
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]


@pytest.mark.parametrize("name", RAY_UP)
def test_the_dashboard_listens_where_the_settings_say(name):
    assert "--dashboard-host=127.0.0.1" in ray_up(name)["head_start_ray_commands"][1]
    opened = ray_up(name, dashboard_host="0.0.0.0")["head_start_ray_commands"][1]
    assert "--dashboard-host=0.0.0.0" in opened


@pytest.mark.parametrize(("name", "low", "high"), [("aws", 0, 8), ("gcp", 1, 4)])
def test_clouds_have_a_cpu_head_and_limited_gpu_workers(name, low, high):
    prepared = prepare_config(ray_up(name))
    head, worker = (prepared["available_node_types"][kind] for kind in ("head", "worker"))
    assert head["resources"] == {"CPU": 0} and head["max_workers"] == 0
    assert worker["resources"] == {"CPU": 8, "GPU": 1}
    assert (worker["min_workers"], worker["max_workers"]) == (low, high)
    assert prepared["max_workers"] == high


def test_on_premise_uses_every_machine():
    prepared = prepare_config(ray_up("on-premise"))
    (node,) = prepared["available_node_types"].values()
    assert (node["min_workers"], node["max_workers"]) == (2, 2)


def test_aws_never_lets_ray_open_a_security_group():
    for node in ray_up("aws")["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"] == ["sg-0123456789abcdef0"]


def test_gcp_attaches_gpus_to_workers_only():
    types = ray_up("gcp")["available_node_types"]
    assert types["worker"]["node_config"]["guestAccelerators"][0]["acceleratorCount"] == 1
    assert "guestAccelerators" not in types["head"]["node_config"]
    cpu = settings("gcp").workers.model_copy(update={"gpus": 0})
    assert "guestAccelerators" not in json.dumps(ray_up("gcp", workers=cpu))


@pytest.mark.parametrize("gpus", [0, 2])
def test_the_slurm_script_passes_bash_and_shellcheck(gpus):
    workers = settings("slurm").workers.model_copy(update={"gpus": gpus})
    script = render(settings("slurm", workers=workers), "slurm")
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert shellcheck(script) == ""
    assert ("#SBATCH --gpus-per-node=2\n" in script) == (gpus == 2)


def test_the_slurm_script_says_what_the_settings_say():
    script = render(settings("slurm", job=("train", "a b; $(true)")), "slurm")
    lines = script.splitlines()
    options = [line for line in lines if line.startswith("#SBATCH")]
    assert lines[0] == "#!/bin/bash" and lines[1 : 1 + len(options)] == options
    for option in ("--nodes=4", "--cpus-per-task=16", "--mem=64G", "--partition=gpu"):
        assert f"#SBATCH {option}" in options
    assert "job=(python -m sft_rl train 'a b; $(true)')" in lines
    assert "dashboard_host=127.0.0.1" in lines and "interface=ib0" in lines
    assert "export RAY_AUTH_MODE=token" in lines


def test_the_slurm_token_is_made_for_its_owner_only(tmp_path):
    script = render(settings("slurm", activate=()), "slurm")
    before_nodes = script.split("# Nodes must reach each other")[0]
    show = 'stat -c %a "${RAY_AUTH_TOKEN_PATH}"; wc -c < "${RAY_AUTH_TOKEN_PATH}"'
    environment = {
        "HOME": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
    }
    shim = tmp_path / "python"
    shim.symlink_to(subprocess.check_output(["which", "python3"], text=True).strip())
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", before_nodes + show], capture_output=True, text=True, env=environment
    )
    assert done.stdout.split() == ["600", "65"], done.stderr
    assert list((tmp_path / ".ray").iterdir()) == []  # removed at the end


def test_a_slurm_job_that_is_told_to_stop_may_save_first(tmp_path):
    script = render(settings("slurm", activate=()), "slurm")
    traps = script[script.index("clean_up() {") : script.index("python -c")]
    job = "trap 'sleep 0.5; echo saved; exit 143' TERM; echo runs; while :; do sleep 0.1; done"
    body = f"RAY_AUTH_TOKEN_PATH={tmp_path}/token\n{traps}\n(sleep 600) &\n({job}) &\n"
    command = ["bash", "-c", f'{body}job_pid=$!\nwait "$job_pid"']
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "runs\n"
    process.terminate()
    assert process.communicate(timeout=300)[0] == "saved\n"
    assert process.returncode == 143


@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
def test_the_dockerfile_passes_hadolint_and_is_not_root(accelerator):
    docker = settings("aws").docker.model_copy(update={"accelerator": accelerator})
    text = render(settings("aws", docker=docker), "dockerfile")
    assert hadolint(text) == ""
    parser = DockerfileParser(fileobj=io.BytesIO(text.encode()))
    steps = parser.structure
    assert parser.baseimage == "python:3.11-slim"
    assert [s["value"] for s in steps if s["instruction"] == "USER"] == ["1000:1000"]
    assert parser.envs["RAY_AUTH_MODE"] == "token"
    assert ("NVIDIA_VISIBLE_DEVICES" in parser.envs) == (accelerator == "cuda")
    installs = [s["value"] for s in steps if s["instruction"] == "RUN" and "pip" in s["value"]]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in value for value in installs)


def test_hadolint_would_complain():
    assert "DL3002" in hadolint("FROM python:3.11-slim\nUSER root\n")


def test_the_image_has_every_package_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    include = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {pattern.removesuffix("*") for pattern in include} == set(PACKAGES)
    assert [name for name in (*COPIED, *PACKAGES) if not (ROOT / name).exists()] == []


def test_extras_are_installed():
    docker = settings("aws").docker.model_copy(update={"extras": ("images", "rllib")})
    assert '".[images,rllib]"' in render(settings("aws", docker=docker), "dockerfile")


def test_the_default_ray_version_is_the_one_tested_with():
    assert ClusterSettings.model_fields["ray_version"].default == ray.__version__


def run_command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_cluster_commands(parser.add_subparsers(required=True))
    args = parser.parse_args(["cluster", "render", *arguments])
    return args.run(args, 0.0)


def test_the_command_writes_a_file_or_standard_output(tmp_path, capsys):
    source, out = str(EXAMPLES / "aws.yaml"), tmp_path / "cluster.yaml"
    arguments = ("--settings", source, "--target", "ray-up")
    assert run_command(*arguments, "--out", str(out)) == 0
    assert run_command(*arguments) == 0
    assert capsys.readouterr().out == out.read_text() == render(settings("aws"), "ray-up")


def test_the_command_refuses_a_path_it_cannot_write(tmp_path):
    source = str(EXAMPLES / "aws.yaml")
    with pytest.raises(UserError, match="cannot be written: No such file"):
        run_command(
            "--settings", source, "--target", "ray-up", "--out", str(tmp_path / "no" / "x.yaml")
        )
