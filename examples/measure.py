"""How good is a policy of any library? Its samples' distance, by the project's protocol."""

from collections.abc import Callable, Sequence

import gymnasium
import numpy as np
import torch

from sft_rl.config.files import load_config
from sft_rl.data import load_dataset
from sft_rl.metrics.evaluation import Evaluator

DISTANCE = "sliced_wasserstein"
Act = Callable[[np.ndarray], np.ndarray]
"""Maps flat observations (B, dim + 1) to actions (B, dim)."""


class Judge:
    """Lets a policy denoise fresh samples of the swiss roll, ``action="noise"``; measures them.

    The starting noise is always the same; the policy draws its own.

    Args:
        num_steps: Number of denoising steps T.
        settings: ``key=value`` settings of the preset.
    """

    def __init__(self, *, num_steps: int, settings: Sequence[str] = ()) -> None:
        own = [*settings, f"sampler.num_steps={num_steps}", f"metrics.distance={DISTANCE}"]
        config = load_config("swiss_roll", own)
        num = config.metrics.num_samples
        self.data = load_dataset(config.data)
        self.evaluator = Evaluator(self.data, config.metrics)
        self._to_training_data = self.evaluator.measure.watching(self.data.train_in_units(num))
        self.env = gymnasium.make_vec(
            "envs:sft_rl/Denoising-v0",
            num_envs=num,
            preset="swiss_roll",
            num_steps=num_steps,
            settings=settings,
            action="noise",
            observation="flat",
        )

    def distance(self, act: Act) -> float:
        """Sliced Wasserstein-2 distance to held-out points, as reported (docs/metrics.md)."""
        return self.evaluator.distance(self._samples(act, seed=0))

    def validate(self, act: Act) -> float:
        """The same to training points and from other noise: to choose a policy by."""
        return self._to_training_data(self._samples(act, seed=10**6))[DISTANCE]

    def _samples(self, act: Act, *, seed: int) -> np.ndarray:
        observation, infos = self.env.reset(seed=seed)
        while "final_obs" not in infos:
            observation, _, _, _, infos = self.env.step(act(observation))
        return self.data.units.to_data(torch.from_numpy(infos["final_obs"][:, :-1]))
