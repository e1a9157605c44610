"""What observations and actions of the denoising MDP look like to Gymnasium."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces

from envs.process import DenoisingProcess
from sft_rl.errors import UserError, did_you_mean

OBSERVATIONS = ("dict", "flat")
ACTION_BOUNDS = {"next_latent": 100.0, "noise": 10.0, "epsilon": 100.0}
"""Finite, as many libraries want bounds; so wide that a library that clips to them cuts nothing."""
LATENT_BOUND = 1e6
"""Latents have no bound; this one is finite, as many libraries want it."""


def observation_space(process: DenoisingProcess, observation: str) -> spaces.Space[Any]:
    """Space of one observation of a process, ``dict`` or ``flat``.

    Raises:
        UserError: If there is none of that name, or no place in it for a label.
    """
    check_choice("observation", observation, OBSERVATIONS)
    shape, conditions = process.shape, process.conditions
    if observation == "flat":
        if process.num_classes or conditions is not None:
            message = "no place for the label or vector of a conditional model; use 'dict'"
            raise UserError(f"observation: 'flat' has {message}")
        return spaces.Box(-LATENT_BOUND, LATENT_BOUND, (math.prod(shape) + 1,), np.float32)
    parts: dict[str, spaces.Space[Any]] = {
        "latent": spaces.Box(-LATENT_BOUND, LATENT_BOUND, shape, np.float32),
        "step_index": spaces.Discrete(process.num_steps + 1),
    }
    if process.num_classes:
        parts["label"] = spaces.Discrete(process.num_classes)
    vectors = conditions if conditions is not None else process.embeddings
    if vectors is not None:
        parts["condition"] = spaces.Box(-LATENT_BOUND, LATENT_BOUND, vectors.shape[1:], np.float32)
    return spaces.Dict(parts)


def action_space(shape: tuple[int, ...], action: str, bound: float | None) -> spaces.Box:
    """Space of one action; without a `bound` its own wide one.

    Raises:
        UserError: If the bound is not a positive number.
    """
    bound = ACTION_BOUNDS[action] if bound is None else bound
    if not 0 < bound < math.inf:
        raise UserError(f"action_bound: must be a positive number, got {bound}")
    return spaces.Box(-bound, bound, shape, np.float32)


def check_choice(field: str, given: str, allowed: tuple[str, ...]) -> None:
    """Refuse a word that is none of those allowed.

    Raises:
        UserError: With the nearest.
    """
    if given not in allowed:
        raise UserError(f"{field}: {given!r} is unknown; {did_you_mean(given, allowed)}")
