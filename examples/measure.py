"""How good is a policy of any library? The distance of what it samples, by the project's protocol.

Sliced Wasserstein-2 distance of 10,000 samples, drawn through the env, to 10,000 held-out points
(see docs/metrics.md).
"""

from collections.abc import Callable, Sequence

import gymnasium
import numpy as np
import torch

from sft_rl.data import load_dataset
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.presets import load_config

Act = Callable[[np.ndarray], np.ndarray]
"""Maps flat observations (B, dim + 1) to actions (B, dim)."""


def distance(act: Act, *, num_steps: int, settings: Sequence[str] = ()) -> float:
    """Let a policy denoise fresh samples of the swiss roll with ``action="noise"``; measure them.

    The env's starting noise is always the same; the policy draws its own.
    """
    config = load_config("swiss_roll", [*settings, f"sampler.num_steps={num_steps}"])
    data = load_dataset(config.data)
    env = gymnasium.make_vec(
        "envs:sft_rl/Denoising-v0",
        num_envs=config.metrics.num_samples,
        preset="swiss_roll",
        num_steps=num_steps,
        settings=settings,
        action="noise",
        observation="flat",
    )
    observation, infos = env.reset(seed=0)
    while "final_obs" not in infos:
        observation, _, _, _, infos = env.step(act(observation))
    samples = torch.from_numpy(infos["final_obs"][:, :-1])
    return Evaluator(data, config).distance(data.to_units(samples))
