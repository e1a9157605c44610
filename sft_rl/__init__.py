"""Shortcut fine-tuning of diffusion samplers by policy gradient (SFT-PG), on Ray.

Importing this package is cheap: nothing below pulls in torch or Ray until it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sft_rl.algorithms import Algorithm, Networks
    from sft_rl.api import Result, fine_tune, load_config, load_result
    from sft_rl.config import Config, Section
    from sft_rl.critics import Critic
    from sft_rl.diffusion.schedule import StepSchedule
    from sft_rl.errors import UserError
    from sft_rl.export.sampler import Sampler, load_sampler
    from sft_rl.jobs.resuming import check_resumes
    from sft_rl.policy import DenoisingPolicy
    from sft_rl.rewards.reward import reward
    from sft_rl.types import Loss, Trajectories, Transitions
    from tuning import trainable as tune
    from tuning.api import search

__version__ = "0.1.0"

_HOMES = {
    "Algorithm": "sft_rl.algorithms",
    "Config": "sft_rl.config",
    "Critic": "sft_rl.critics",
    "DenoisingPolicy": "sft_rl.policy",
    "Loss": "sft_rl.types",
    "Networks": "sft_rl.algorithms",
    "Result": "sft_rl.api",
    "Sampler": "sft_rl.export.sampler",
    "Section": "sft_rl.config",
    "StepSchedule": "sft_rl.diffusion.schedule",
    "Trajectories": "sft_rl.types",
    "Transitions": "sft_rl.types",
    "UserError": "sft_rl.errors",
    "check_resumes": "sft_rl.jobs.resuming",
    "fine_tune": "sft_rl.api",
    "load_config": "sft_rl.api",
    "load_result": "sft_rl.api",
    "load_sampler": "sft_rl.export.sampler",
    "reward": "sft_rl.rewards.reward",
    "search": "tuning.api",
    "tune": "tuning.trainable",
}
"""Where each public name is defined; it is imported when it is first used. `tune` is a module."""

__all__ = [
    "Algorithm",
    "Config",
    "Critic",
    "DenoisingPolicy",
    "Loss",
    "Networks",
    "Result",
    "Sampler",
    "Section",
    "StepSchedule",
    "Trajectories",
    "Transitions",
    "UserError",
    "check_resumes",
    "fine_tune",
    "load_config",
    "load_result",
    "load_sampler",
    "reward",
    "search",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sft_rl' has no attribute {name!r}")
    importlib.import_module("sft_rl.errors").check_neighbours()
    home = importlib.import_module(_HOMES[name])
    return home if name == "tune" else getattr(home, name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
