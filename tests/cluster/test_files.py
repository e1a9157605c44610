"""`ray up` files, Slurm scripts and Dockerfiles against the tools that read them."""

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
from cluster.config import ClusterSettings
from cluster.package import PACKAGES
from cluster.render import TARGETS, render
from sft_rl.cli import main

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
    """Return an example with other fields; those of a section as a dictionary."""
    raw = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    for key, value in changes.items():
        raw[key] = raw.get(key, {}) | value if isinstance(value, dict) else value
    return ClusterSettings.model_validate(raw)


def ray_up(name: str, **changes: Any) -> dict[str, Any]:
    return yaml.safe_load(render(settings(name, **changes), "ray-up"))


def complaints(tool: str, *options: str, text: str) -> str:
    """Return what a program that was installed beside this Python says of a text."""
    command = [Path(sys.executable).parent / tool, *options, "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True).stdout


def shellcheck(script: str) -> str:
    """Return shellcheck's complaints; a user's venv (SC1091) is not there to be read."""
    return complaints("shellcheck", "--shell=bash", "--exclude=SC1091", text=script)


def hadolint(text: str) -> str:
    return complaints("hadolint", "--no-color", text=text)


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


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_accepts_its_cluster_file(name):
    config = ray_up(name)
    jsonschema.validate(config, RAY_SCHEMA)
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["docker"]["image"] == "registry.example.com/sft-rl:0.1.0"
    config["max_worker"] = config.pop("max_workers")
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate(config, RAY_SCHEMA)


@pytest.mark.parametrize("name", RAY_UP)
@pytest.mark.parametrize("role", ["head", "worker"])
def test_start_commands_are_sound_and_ask_for_the_token(name, role):
    activate = ["source venv/bin/activate", "module load 'a: b' # <&> é \"c\\d\""]
    commands = ray_up(name, activate=activate)[f"{role}_start_ray_commands"]
    assert shellcheck("\n".join(command.replace(activate[1], "true") for command in commands)) == ""
    for command in commands:
        assert command.startswith(" && ".join([*activate, "export RAY_AUTH_MODE=token && "]))
    assert commands[0].endswith("ray stop")
    assert "ray start" in commands[1]


@pytest.mark.parametrize("name", RAY_UP)
def test_the_token_and_the_dashboard_are_where_the_settings_say(name):
    config = ray_up(name, token_file="/secure/token", dashboard_host="0.0.0.0")
    assert config["file_mounts"] == {"~/.ray/auth_token": "/secure/token"}
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    assert "--dashboard-host=0.0.0.0" in config["head_start_ray_commands"][1]
    assert "--dashboard-host=127.0.0.1" in ray_up(name)["head_start_ray_commands"][1]


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
    machine = {"subnet_ids": ["subnet-1"], "machine_image": "ami-1"}
    types = ray_up("aws", aws=machine)["available_node_types"]
    for kind, instance in (("head", "m7i.xlarge"), ("worker", "g6.2xlarge")):
        node = types[kind]["node_config"]
        assert node["SecurityGroupIds"] == ["sg-0123456789abcdef0"]
        assert (node["InstanceType"], node["SubnetIds"]) == (instance, ["subnet-1"])
        assert node["ImageId"] == "ami-1"
    assert "InstanceMarketOptions" in types["worker"]["node_config"]
    assert "InstanceMarketOptions" not in types["head"]["node_config"]


@pytest.mark.parametrize("gpus", [0, 1])
@pytest.mark.parametrize("spot", [False, True])
def test_gcp_attaches_gpus_to_workers_only(gpus, spot):
    types = ray_up("gcp", workers={"gpus": gpus}, gcp={"spot": spot})["available_node_types"]
    assert not {"guestAccelerators", "scheduling"} & set(types["head"]["node_config"])
    worker = types["worker"]["node_config"]
    attached = [one["acceleratorCount"] for one in worker.get("guestAccelerators", [])]
    assert attached == [gpus] * gpus
    scheduling = {"preemptible": True} if spot else {}
    scheduling |= {"onHostMaintenance": "TERMINATE"} if gpus else {}
    assert worker.get("scheduling", {}) == scheduling


@pytest.mark.parametrize("gpus", [0, 2])
def test_the_slurm_script_passes_bash_and_shellcheck(gpus):
    script = render(settings("slurm", workers={"gpus": gpus}), "slurm")
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert shellcheck(script) == ""
    assert ("#SBATCH --gpus-per-node=2\n" in script) == (gpus == 2)


def test_the_slurm_script_says_what_the_settings_say():
    job = ["train", "a b; $(true)"]
    script = render(settings("slurm", job=job, slurm={"account": "mine"}), "slurm")
    first, *options = script[: script.index("\n\n")].splitlines()
    assert first == "#!/bin/bash"
    assert {f"#SBATCH --{o}" for o in ("nodes=4", "partition=gpu", "account=mine")} < set(options)
    lines = {"job=(python -m sft_rl train 'a b; $(true)')", "interface=ib0", "module load cuda"}
    assert lines < set(script.splitlines())


def test_the_slurm_script_asks_for_what_a_site_has():
    own = {
        "qos": "long",
        "constraint": "a100&nvlink",
        "gres": "gpu:a100:2",
        "sbatch": ["--exclusive"],
    }
    script = render(settings("slurm", slurm={**own, "notice_seconds": 300}), "slurm")
    lines = {line for line in script.splitlines() if line.startswith("#SBATCH")}
    assert lines >= {
        "#SBATCH --qos=long",
        "#SBATCH --constraint='a100&nvlink'",
        "#SBATCH --gres=gpu:a100:2",
        "#SBATCH --exclusive",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --signal=B:TERM@300",
    }
    assert not any("--gpus-per-node" in line for line in lines)


def test_the_slurm_token_is_made_for_its_owner_only(tmp_path):
    script = render(settings("slurm", activate=[]), "slurm")
    before_nodes = script.split("# Nodes must reach each other")[0]
    show = 'stat -c %a "${RAY_AUTH_TOKEN_PATH}"; wc -c < "${RAY_AUTH_TOKEN_PATH}"'
    (tmp_path / "python").symlink_to(sys.executable)
    path = f"{tmp_path}:/usr/local/bin:/usr/bin:/bin"
    environment = {"HOME": str(tmp_path), "SLURM_JOB_ID": "7", "PATH": path}
    command = ["bash", "-c", before_nodes + show]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["600", "65"], done.stderr
    assert list((tmp_path / ".ray").iterdir()) == []  # removed at the end


def test_a_slurm_job_that_is_told_to_stop_may_save_first(tmp_path):
    script = render(settings("slurm", activate=[]), "slurm")
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
    docker = {"accelerator": accelerator, "extras": ["images", "rllib"]}
    text = render(settings("aws", docker=docker), "dockerfile")
    assert hadolint(text) == ""
    assert "DL3002" in hadolint(text.replace("USER 1000:1000", "USER root"))
    parser = DockerfileParser(fileobj=io.BytesIO(text.encode()))
    values = {
        kind: [s["value"] for s in parser.structure if s["instruction"] == kind]
        for kind in ("USER", "RUN", "COPY")
    }
    assert parser.baseimage == "python:3.11-slim"
    assert values["USER"] == ["1000:1000"]
    assert parser.envs["RAY_AUTH_MODE"] == "token"
    assert ("NVIDIA_VISIBLE_DEVICES" in parser.envs) == (accelerator == "cuda")
    installs = [value for value in values["RUN"] if "pip" in value]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in value for value in installs)
    assert installs[-1].endswith('".[images,rllib]"')
    copied = [name for value in values["COPY"] for name in value.split()[:-1]]
    assert set(PACKAGES) < set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_what_travels_is_every_package_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    include = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {pattern.removesuffix("*") for pattern in include} == set(PACKAGES)


def test_the_default_ray_version_is_the_one_tested_with():
    assert ClusterSettings.model_fields["ray_version"].default == ray.__version__


def test_the_command_writes_a_file_or_standard_output(tmp_path, capsys):
    out = tmp_path / "cluster.yaml"
    command = ["cluster", "render", "--settings", f"{EXAMPLES}/aws.yaml", "--target", "ray-up"]
    assert main([*command, "--out", str(out)]) == 0
    assert main(command) == 0
    assert capsys.readouterr().out == out.read_text() == render(settings("aws"), "ray-up")
    assert main([*command, "--out", str(tmp_path / "no" / "x.yaml")]) == 2
    assert ": No such file" in capsys.readouterr().err
