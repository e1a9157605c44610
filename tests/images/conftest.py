"""A tiny U-Net and a tiny run on the digits."""

import json
from pathlib import Path

import pytest

from sft_rl.cli import main

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
    "metrics.num_samples=60",
    "rollout.num_workers=0",
)


@pytest.fixture(scope="session")
def tiny_unet() -> dict[str, object]:
    """Arguments of a UNet2DModel with a few thousand parameters."""
    return UNET


@pytest.fixture(scope="session")
def tiny_digits() -> tuple[str, ...]:
    """Settings that make a run of `digits` take seconds, its pretraining included."""
    return TINY_DIGITS


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory, _own_machine_room: None) -> Path:
    """A finished run's folder."""
    out = tmp_path_factory.mktemp("digits") / "run"
    assert main(["train", "digits", *TINY_DIGITS, "--out", str(out)]) == 0
    return out
