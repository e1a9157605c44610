"""Models of others, as pretrained ones of the digits."""

from pathlib import Path

from torch import nn

from sft_rl.config import ResolvedConfig
from sft_rl.config.files import load_config
from sft_rl.data import Dataset
from sft_rl.runs.parts import full_step_network
from sft_rl.runs.resolve import resolve


def resolved(path: Path, *settings: str) -> tuple[ResolvedConfig, Dataset]:
    short = "sampler.start_time=10"
    return resolve(load_config("digits", [f"pretrained.path={path}", short, *settings]))


def config_of(path: Path, *settings: str) -> ResolvedConfig:
    return resolved(path, *settings)[0]


def network_of(path: Path, *settings: str) -> nn.Module:
    network, there = full_step_network(*resolved(path, *settings))
    assert there
    return network
