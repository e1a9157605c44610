"""The batched env as Stable-Baselines3 wants it, which has a vector API of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import (
    VecEnvIndices,
    VecEnvObs,
    VecEnvStepReturn,
)

from envs.denoising import DenoisingVectorEnv
from sft_rl.errors import UserError


class StableBaselines3VecEnv(VecEnv):
    """A :class:`envs.DenoisingVectorEnv` behind Stable-Baselines3's ``VecEnv``.

    Both start the next episodes in the step that ends the last ones. Stable-Baselines3 wants one
    info a row, with the last observation as ``terminal_observation``.

    Args:
        env: The batched env, ``array="numpy"``.

    Raises:
        UserError: If the env hands out torch tensors.
    """

    def __init__(self, env: DenoisingVectorEnv) -> None:
        if env.array != "numpy":
            raise UserError(f"array: Stable-Baselines3 takes 'numpy', got {env.array!r}")
        self.env = env
        self._actions: np.ndarray | None = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> VecEnvObs:
        """Start all episodes, seeded if :meth:`seed` was called before."""
        observations, _ = self.env.reset(seed=self._seeds[0])  # row i gets this seed + i
        self._reset_seeds()
        return observations  # type: ignore[no-any-return]

    def step_async(self, actions: np.ndarray) -> None:
        """Remember the actions (B, *shape)."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Take the remembered actions."""
        observations, rewards, ended, _, last = self.env.step(self._actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if "final_obs" in last:
            for i, info in enumerate(infos):
                info["terminal_observation"] = _row(last["final_obs"], i)
        return observations, rewards, ended, infos

    def close(self) -> None:
        """Let go of the env."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """All samples in one picture, if the env renders."""
        return self.env.render() or [None]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The env's attribute, which all rows share."""
        value = getattr(self.env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the env, for all rows."""
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method of the env, once for all rows."""
        result = getattr(self.env, method_name)(*args, **kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """No row is wrapped: there are no scalar envs."""
        return [False for _ in self._get_indices(indices)]


def _row(observations: Any, i: int) -> Any:
    if isinstance(observations, dict):
        return {name: values[i] for name, values in observations.items()}
    return observations[i]
