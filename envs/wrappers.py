"""The batched env for libraries that know only next-step autoreset."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

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

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start all episodes."""
        self._next = None
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take the actions, or start the next episodes if the last ones have ended."""
        if self._next is not None:
            started, self._next = self._next, None
            none = np.zeros(self.num_envs, dtype=bool)
            return started, np.zeros(self.num_envs, np.float32), none, none.copy(), {}
        observations, rewards, ended, truncated, infos = self.env.step(actions)
        if "final_obs" not in infos:
            return observations, rewards, ended, truncated, infos
        self._next = observations
        return infos["final_obs"], rewards, ended, truncated, {}
