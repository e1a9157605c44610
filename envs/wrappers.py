"""Around the batched env: next-step autoreset for libraries that know no other, and statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from torch import Tensor

from envs.denoising import DenoisingVectorEnv
from sft_rl.errors import UserError


class NextStepAutoreset(VectorWrapper):
    """Starts the next episodes one step after the last ones have ended.

    The step that ends the episodes returns their last observations; the step after it ignores
    its actions, pays nothing and returns the first observations of the next episodes.
    Gymnasium's vector ``NormalizeObservation`` and RLlib's env runners want it this way.

    Args:
        env: A vector env whose episodes end together, same-step autoreset,
            ``array="numpy"``.

    Raises:
        UserError: If the env has another autoreset.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise UserError(f"env: expected same-step autoreset, got {mode}")
        super().__init__(env)
        self.metadata = {**env.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}
        self._next: Any = None
        self._final: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start all episodes."""
        self._next = self._final = None
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take the actions, or start the next episodes if the last ones have ended."""
        if self._next is not None:
            started, self._next, self._final = self._next, None, None
            none = np.zeros(self.num_envs, dtype=bool)
            return started, np.zeros(self.num_envs, np.float32), none, none.copy(), {}
        observations, rewards, ended, truncated, infos = self.env.step(actions)
        if "final_obs" not in infos:
            return observations, rewards, ended, truncated, infos
        self._next, self._final = observations, infos["final_obs"]
        return infos["final_obs"], rewards, ended, truncated, {}

    def render(self) -> tuple[Any, ...] | None:
        """Draw the latents, after the last step those that the episodes ended with."""
        env = self.unwrapped
        if self._final is None or not isinstance(env, DenoisingVectorEnv):
            return self.env.render()
        final = self._final["latent"] if isinstance(self._final, dict) else self._final[:, :-1]
        return env.draw(torch.as_tensor(final).reshape(env.process.latents.shape))


class EpisodeStatistics(RecordEpisodeStatistics):
    """Gymnasium's ``RecordEpisodeStatistics`` for envs of ``array="torch"``, too.

    Args:
        env: A vector env.
        buffer_length: As Gymnasium's.
        stats_key: As Gymnasium's.
    """

    def __init__(
        self, env: VectorEnv[Any, Any, Any], buffer_length: int = 100, stats_key: str = "episode"
    ) -> None:
        self._arrays = _Arrays(env)
        super().__init__(self._arrays, buffer_length, stats_key)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take the actions; what is returned is of the env's own kind."""
        *_, infos = super().step(actions)
        return *self._arrays.newest, infos


class _Arrays(VectorWrapper):
    """Hands out arrays of what an env returns, and keeps the newest as they were."""

    newest: tuple[Any, Any, Any, Any]

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        *newest, infos = self.env.step(actions)
        observations, *numbers = self.newest = tuple(newest)
        arrays = [n.cpu().numpy() if isinstance(n, Tensor) else n for n in numbers]
        return observations, *arrays, infos
