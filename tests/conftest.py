"""What every test gets: one CPU thread, a cache of its own, and tiny configurations."""

import gc
import json
import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import users_ray
from real_cluster import RealCluster, real_cluster

from sft_rl.config import ResolvedConfig
from sft_rl.config.files import load_config
from sft_rl.runs.resolve import resolve

TINY = (
    "data.num_points=2000",
    "model.width=16",
    "model.depth=1",
    "pretraining.num_iterations=20",
    "pretraining.batch_size=64",
    "pretraining.num_times=16",
    "sampler.num_steps=4",
    "critic.objective=wasserstein",
    "critic.regulariser=gradient_penalty",
    "critic.penalty_weight=1",
    "critic.penalty_every=1",
    "critic.width=16",
    "critic.num_warmup_steps=2",
    "value.width=16",
    "training.num_iterations=3",
    "training.batch_size=32",
    "training.eval_every=2",
    "training.checkpoint_every=2",
    "training.plots=false",
    "metrics.num_samples=400",
    "metrics.num_exact=100",
    "metrics.num_excess=800",
    "metrics.num_projections=20",
    "rollout.num_workers=0",
)

UNET = {
    "block_out_channels": [8, 8],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "add_attention": False,
}
TINY_DIGITS = (
    f"model.unet={json.dumps(UNET)}",
    "pretraining.num_iterations=10",
    "pretraining.batch_size=16",
    "noise.num_train_timesteps=20",
    "sampler.num_steps=3",
    "sampler.start_time=15",
    "critic.width=8",
    "critic.num_warmup_steps=1",
    "training.num_iterations=3",
    "training.batch_size=8",
    "training.eval_every=2",
    "training.plots=false",
    "metrics.num_samples=60",
    "rollout.num_workers=0",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import all tests without looking for garbage: what they import stays, and is set aside."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_configure() -> None:
    # Before pytest-xdist starts its workers: the threads that numpy's BLAS takes for every core
    # wait for each other by spinning, and beside other workers a test of 0.7 s took 48.
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Side by side: a file's tests, which share its fixtures. What waits for processes comes first,
    # so that others fill the gaps: in three rows, two of which share a cluster or a user's Ray.
    for item in items:
        is_ray = item.get_closest_marker("ray") is not None
        dear = {"ray_cluster", "in_users_ray", "digits_run"}
        shared = dear.intersection(getattr(item, "fixturenames", ()))
        group = shared.pop() if shared else "Ray" if is_ray else str(item.path)
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


@pytest.fixture(scope="session", autouse=True)
def _own_machine_room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache out of the tests, here and in the processes they start.

    Those who run side by side share one: what each would train again takes seconds.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFT_RL_CACHE", str(shared / "cache"))
        patch.setenv("RAY_worker_niceness", "0")  # tests beside it must not starve a cluster
        patch.delenv("RAY_ADDRESS", raising=False)
        torch.set_num_threads(1)
        # A shell that starts the tests with "&" has SIGINT ignored, and so would all children.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("SFT_RL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RealCluster]:
    """A real Ray cluster of three nodes, started for the first test that asks for it."""
    with real_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def in_users_ray() -> Iterator[users_ray.UsersRay]:
    """Runs `sft-rl`, or a script, in a Python where a Ray runs already."""
    with users_ray.running() as python:
        yield python


@pytest.fixture(scope="session")
def tiny_settings() -> tuple[str, ...]:
    """Settings that make a run of `swiss_roll` take seconds, its pretraining included."""
    return TINY


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., ResolvedConfig]:
    """Resolve the tiny configuration, with ``key=value`` settings on top."""
    return lambda *settings: resolve(load_config("swiss_roll", [*TINY, *settings]))[0]


@pytest.fixture(scope="session")
def tiny_unet() -> dict[str, object]:
    """Arguments of a UNet2DModel with a few thousand parameters."""
    return UNET


@pytest.fixture(scope="session")
def tiny_digits() -> tuple[str, ...]:
    """Settings that make a run of `digits` take seconds, its pretraining included."""
    return TINY_DIGITS


@pytest.fixture
def make_options(tiny_settings: tuple[str, ...]) -> dict[str, Any]:
    """What `gymnasium.make` and `make_vec` get for the tiny swiss roll."""
    return {"id": "envs:sft_rl/Denoising-v0", "preset": "swiss_roll", "settings": tiny_settings}
