"""The front door: what people import works from scripts, with their own parts, anywhere."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from processes import session_processes
from real_cluster import wait_for
from torch import Tensor, nn
from users_ray import UsersRay

import sft_rl
from sft_rl.cli import main

Load = Callable[..., sft_rl.Config]


@pytest.fixture(scope="module")
def load(tiny_settings: tuple[str, ...]) -> Load:
    return lambda *own: sft_rl.load_config("swiss_roll", [*tiny_settings, *own])


def test_importing_is_cheap_and_every_name_is_there():
    code = "import sft_rl, sys; print([m for m in ('torch', 'ray', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    for name in sft_rl.__all__:
        assert getattr(sft_rl, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sft_rl.nothing  # noqa: B018


def test_settings_by_name_list_or_dictionary():
    config = sft_rl.load_config("swiss_roll", ["critic.width=7"], num_steps=4, algorithm="ppo")
    assert (config.critic.width, config.sampler.num_steps, config.algorithm) == (7, 4, "ppo")
    ten_steps = sft_rl.load_config("swiss_roll")
    assert config.training.num_iterations > ten_steps.training.num_iterations  # its blocks follow
    assert sft_rl.load_config("swiss_roll", {"sampler.timesteps": [9, 5]}).sampler.num_steps == 2
    for wrong, message in (
        ({"learning_rate": 1e-3}, "have that name"),
        ({"num_stepz": 3}, "did you mean 'num_steps'"),
        ({"num_steps": object()}, "must be plain"),
        ({"num_steps": 0}, "sampler.num_steps: .*got 0"),
    ):
        with pytest.raises(sft_rl.UserError, match=message):
            sft_rl.load_config("swiss_roll", **wrong)
    with pytest.raises(sft_rl.UserError, match="one of them"):
        sft_rl.load_config()


def test_a_run_is_the_command_lines_own(tmp_path: Path, load: Load, tiny_settings: Any):
    rows: list[tuple[int, int]] = []
    result = sft_rl.fine_tune(
        load(), out=tmp_path / "a", observer=lambda done, total, metrics: rows.append((done, total))
    )
    assert rows[-3:] == [(1, 3), (2, 3), (3, 3)]
    assert result.folder == str(tmp_path / "a")
    assert result.history["iteration"].tolist() == [1, 2, 3]
    assert main(["train", "swiss_roll", *tiny_settings, "--out", str(tmp_path / "b")]) == 0
    again = sft_rl.load_result(tmp_path / "b")
    assert again.metrics["policy_sha256"] == result.metrics["policy_sha256"]
    assert np.array_equal(again.sampler.sample(9, seed=3), result.sampler.sample(9, seed=3))
    with pytest.raises(sft_rl.UserError, match="is a TimeMLP; only a UNet2DModel"):
        result.sampler.to_diffusers()
    with pytest.raises(sft_rl.UserError, match="already holds a run"):
        sft_rl.fine_tune(load(), out=tmp_path / "a", observer=None)


def test_a_sampler_needs_neither_its_data_nor_its_place(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    points = np.random.default_rng(0).normal([100.0, 5.0, 0.0], [10.0, 1.0, 0.1], (1500, 3))
    np.save(tmp_path / "points.npy", points)
    monkeypatch.chdir(tmp_path)
    result = sft_rl.fine_tune(load("data.path=points.npy"), out="run", observer=None)
    samples = result.sampler.sample(50)
    np.save(tmp_path / "points.npy", 2 * points)  # others now
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert np.array_equal(sft_rl.load_sampler("../moved").sample(50), samples)
    assert main(["evaluate", "../moved"]) == 2
    assert "is not what ../moved was trained on" in capsys.readouterr().err
    Path(tmp_path / "points.npy").unlink()
    assert main(["sample", "../moved", "--num", "50", "--out", "x.npy"]) == 0
    assert np.array_equal(np.load("x.npy"), samples)
    assert abs(samples[:, 0].mean() - 100.0) < 30.0


class OwnNetwork(nn.Module):
    """Takes plain batches, as people write them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        assert latents.ndim == 2
        assert timesteps.shape == latents.shape[:1]
        return self.layers(torch.cat([latents, timesteps[:, None] / 1000.0], dim=1))


def test_own_network_data_and_reward_from_memory(tmp_path: Path, load: Load):
    torch.manual_seed(0)
    network = OwnNetwork()
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    points = pd.DataFrame(np.random.default_rng(0).normal([5.0, 0.0], [2.0, 1.0], (500, 2)))

    def to_the_right(samples: Tensor) -> Tensor:
        return samples[:, 0]

    parts: Any = {"network": network, "data": points, "reward": to_the_right}
    long = load("training.num_iterations=30", "policy.learning_rate=1e-2")
    result = sft_rl.fine_tune(long, out=tmp_path / "run", observer=None, **parts)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, start[name])  # it was copied
    assert result.history["reward_mean"].iloc[-1] > result.history["reward_mean"].iloc[0] + 0.1
    loaded = sft_rl.load_sampler(tmp_path / "run", network=OwnNetwork())
    assert np.array_equal(loaded.sample(10), result.sampler.sample(10))
    with pytest.raises(sft_rl.UserError, match="'own' is a network that is handed over"):
        sft_rl.load_sampler(tmp_path / "run")
    with pytest.raises(sft_rl.UserError, match=r"pretrained\.sha256 was"):
        other = {**parts, "network": OwnNetwork()}
        sft_rl.fine_tune(long, out=tmp_path / "run", observer=None, resume=True, **other)
    again = sft_rl.fine_tune(long, out=tmp_path / "run", observer=None, resume=True, **parts)
    assert again.metrics == result.metrics


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"data": np.zeros(5)}, r"data: it has shape \(5,\)"),
        ({"data": np.zeros((9, 3, 4, 4))}, "it has no images, uint8 of shape"),
        ({"network": nn.Linear(3, 2)}, r"network: network\(latents \(2, 2\), timesteps \(2,\)\)"),
        ({"network": nn.Identity()}, "has no parameters"),
        ({"observer": "loud"}, "observer: 'loud' is unknown"),
        ({"reward": lambda samples: samples}, r"reward: .* returned shape \(2, 2\)"),
    ],
)
def test_parts_that_cannot_work_are_one_line(
    tmp_path: Path, load: Load, parts: dict[str, Any], message: str
):
    with pytest.raises(sft_rl.UserError, match=message) as error:
        sft_rl.fine_tune(load(), out=tmp_path / "run", **{"observer": None, **parts})
    assert "\n" not in str(error.value)


def test_an_interrupt_leaves_a_checkpoint_and_nothing_else_changed(tmp_path: Path, load: Load):
    config = load("training.num_iterations=12", "training.checkpoint_every=100")
    undisturbed = sft_rl.fine_tune(config, out=tmp_path / "a", observer=None)

    def interrupt(done: int, total: int, metrics: dict[str, float]) -> None:
        if done == 5:
            os.kill(os.getpid(), signal.SIGINT)

    environment, handler = dict(os.environ), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="after iteration 6; a checkpoint is saved"):
        sft_rl.fine_tune(config, out=tmp_path / "b", observer=interrupt)
    assert dict(os.environ) == environment
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = sft_rl.fine_tune(config, out=tmp_path / "b", observer=None, resume=True)
    assert resumed.metrics["policy_sha256"] == undisturbed.metrics["policy_sha256"]
    assert resumed.history["iteration"].tolist() == list(range(1, 13))
    longer = load("training.num_iterations=15", "training.checkpoint_every=7")
    extended = sft_rl.fine_tune(longer, out=tmp_path / "b", observer=None, resume=True)
    assert extended.history["iteration"].tolist() == list(range(1, 16))


SETTING_UP = """
import json, os, signal, sys, warnings
import sft_rl

os.chdir(sys.argv[1])
config = sft_rl.load_config("swiss_roll", json.loads(sys.argv[2]))
rollout = config.rollout.model_copy(update={"num_workers": 1, "num_cpus_per_worker": 0.5})
with_worker = config.model_copy(update={"rollout": rollout})

def policy_sha256(config, out, **options):
    result = sft_rl.fine_tune(config, out=out, **{"observer": None, **options})
    return result.metrics["policy_sha256"]

def report(*hashes):
    with open("hashes.json", "w") as file:
        json.dump(hashes, file)
"""

A_RAY_OF_ITS_OWN = """
kept = []

def interrupt(done, total, metrics):
    if done == 1:
        import numpy as np
        import ray
        kept.extend(ray.put(np.full(10**7, i)) for i in range(2))  # 80 MB each
        os.kill(os.getpid(), signal.SIGINT)

rays = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
try:
    with warnings.catch_warnings(record=True) as warned:
        small = with_worker.ray.model_copy(update={"object_store_gb": 0.1})
        given = with_worker.model_copy(update={"ray": small})
        policy_sha256(given, "a", observer=interrupt)
except KeyboardInterrupt as error:
    assert "a checkpoint is saved" in str(error), error
(spilled,) = (str(w.message) for w in warned if "MiB of objects went through" in str(w.message))
assert "76 MiB" in spilled, spilled
environment = dict(os.environ)  # libraries that were imported have set names of theirs
assert {n: v for n, v in environment.items() if n.startswith("RAY_")} == rays
assert {"ot", "sklearn"}.isdisjoint(sys.modules)  # which cost seconds
import ray
assert not ray.is_initialized()
resumed = policy_sha256(with_worker if sys.argv[3] == "another" else config, "a", resume=True)
assert not ray.is_initialized()
assert dict(os.environ) == environment
report(resumed)
"""

IN_A_USERS_RAY = """
import ray
from ray import tune

kept = ray.put("mine")
hashes = [policy_sha256(with_worker, "a")]
task = ray.remote(num_cpus=1)(policy_sha256)
hashes.append(ray.get(task.remote(with_worker, os.path.abspath("b"))))

def trial(given):
    tune.report({"hash": policy_sha256(given["config"], given["out"])})

def in_trial(config, out, bundles):
    space = {"config": config, "out": os.path.abspath(out)}
    trainable = tune.with_resources(trial, tune.PlacementGroupFactory(bundles))
    run = tune.RunConfig(storage_path=os.path.abspath("tune"), verbose=0)
    return tune.Tuner(trainable, param_space=space, run_config=run).fit()[0]

hashes.append(in_trial(with_worker, "c", [{"CPU": 1}, {"CPU": 0.5}]).metrics["hash"])
refused = str(in_trial(with_worker, "d", [{"CPU": 1}]).error)
assert "no room for 1 workers with 0.5 CPUs each" in refused, refused
assert ray.is_initialized()
assert ray.get(kept) == "mine"
report(*hashes)
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    """Write a script that leaves its policies' hashes in ``hashes.json``."""

    def write(body: str) -> Path:
        (tmp_path / "script.py").write_text(SETTING_UP + body)
        return tmp_path / "script.py"

    return write


@pytest.fixture(scope="module")
def without_workers(tmp_path_factory: pytest.TempPathFactory, load: Load) -> str:
    """The policy's hash."""
    out = tmp_path_factory.mktemp("without") / "run"
    return sft_rl.fine_tune(load(), out=out, observer=None).metrics["policy_sha256"]


@pytest.mark.ray
@pytest.mark.parametrize("then", ["none", pytest.param("another", marks=pytest.mark.slow)])
def test_a_ray_of_its_own_leaves_nothing_behind(
    then: str,
    tmp_path: Path,
    tiny_settings: tuple[str, ...],
    script: Callable[[str], Path],
    without_workers: str,
):
    process = subprocess.Popen(
        [sys.executable, script(A_RAY_OF_ITS_OWN), tmp_path, json.dumps(tiny_settings), then],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    wait_for(lambda: session_processes(process.pid) == [])
    assert json.loads((tmp_path / "hashes.json").read_text()) == [without_workers]


@pytest.mark.ray
def test_a_ray_that_runs_is_used_and_goes_on(
    tmp_path: Path,
    tiny_settings: tuple[str, ...],
    script: Callable[[str], Path],
    without_workers: str,
    in_users_ray: UsersRay,
):
    in_users_ray(script(IN_A_USERS_RAY), str(tmp_path), json.dumps(tiny_settings))
    assert json.loads((tmp_path / "hashes.json").read_text()) == [without_workers] * 3
