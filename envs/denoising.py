"""The denoising MDP of SFT-PG as Gymnasium environments, scalar and batched."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from envs.process import DenoisingProcess, RewardFunction
from sft_rl.errors import UserError

Observation = dict[str, Any]


def observation_space(num_steps: int, shape: tuple[int, ...]) -> spaces.Dict:
    """Space of one observation: the latent and the index of the step to take."""
    return spaces.Dict(
        latent=spaces.Box(-np.inf, np.inf, shape, np.float32),
        step_index=spaces.Discrete(num_steps + 1),
    )


class DenoisingEnv(gym.Env[Observation, np.ndarray]):
    """Denoise one sample, step by step.

    ## Action space
    ``Box(-inf, inf, shape)``: the next latent x_{k+1}, in model units (std 1).

    ## Observation space
    ``Dict``: ``latent``, ``Box(-inf, inf, shape)`` in model units; ``step_index``,
    ``Discrete(T + 1)``, the number of steps taken.

    ## Rewards
    0 at every step but the last; there the score of the final sample.

    ## Starting state
    ``latent`` ~ N(0, I), ``step_index`` 0.

    ## Episode end
    Terminated after T steps. Never truncated.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(
        self, *, num_steps: int, shape: tuple[int, ...], reward: RewardFunction | None = None
    ) -> None:
        self.process = DenoisingProcess(num_rows=1, num_steps=num_steps, shape=shape, reward=reward)
        self.observation_space = observation_space(num_steps, shape)
        self.action_space = spaces.Box(-np.inf, np.inf, shape, np.float32)
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; the same seed gives the same starting noise."""
        first = not self._running and self.process._episode < 0
        super().reset(seed=seed)
        if seed is not None:
            self.process.seed(torch.tensor([seed]))
        elif first:
            self.process.seed(torch.from_numpy(self.np_random.integers(2**62, size=1)))
        self.process.restart()
        self._running = True
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take the next latent; see the class for the rest."""
        if not self._running:
            raise UserError("step: the episode has ended or was not started, call reset()")
        x = torch.as_tensor(np.asarray(action, dtype=np.float32))[None]
        check_actions(x, (1, *self.process.shape))
        done = self.process.advance(x)
        self._running = not done
        reward = float(self.process.score()) if done else 0.0
        return self._observe(), reward, done, False, {}

    def _observe(self) -> Observation:
        latent = self.process.latents[0].numpy().copy()
        return {"latent": latent, "step_index": np.int64(self.process.step_index)}


class DenoisingVectorEnv(VectorEnv[Observation, Any, Any]):
    """Denoise a batch of samples at once: one batched env, not a loop over scalar ones.

    Row i of an env seeded with s is the scalar env seeded with s + i. All episodes have the same
    length, so they end together, and the next ones start in the same step
    (``AutoresetMode.SAME_STEP``); the last observation is ``infos["final_obs"]``.

    Args:
        num_envs: Number of episodes B.
        num_steps: Number of denoising steps T.
        shape: Shape of one sample.
        reward: Scores final samples (B, *shape); None pays 0.
        array: ``"numpy"``, or ``"torch"`` for tensors that are neither copied nor moved.
        device: Where the latents live; only with ``array="torch"``.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's own declaration)
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": [],
    }

    def __init__(
        self,
        *,
        num_envs: int,
        num_steps: int,
        shape: tuple[int, ...],
        reward: RewardFunction | None = None,
        array: str = "numpy",
        device: torch.device | str = "cpu",
    ) -> None:
        if array not in ("numpy", "torch"):
            raise UserError(f"array: {array!r} is unknown, choose from: numpy, torch")
        self.num_envs = num_envs
        self.array = array
        self.process = DenoisingProcess(
            num_rows=num_envs, num_steps=num_steps, shape=shape, reward=reward, device=device
        )
        self.single_observation_space = observation_space(num_steps, shape)
        self.single_action_space = spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._false = torch.zeros(num_envs, dtype=torch.bool, device=device)
        self._no_reward = torch.zeros(num_envs, device=device)
        self._seeded = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start all episodes; row i starts as the scalar env with ``seed + i`` does."""
        super().reset(seed=seed)
        if seed is not None:
            self.process.seed(torch.arange(self.num_envs) + seed)
        elif not self._seeded:
            self.process.seed(torch.from_numpy(self.np_random.integers(2**62, size=self.num_envs)))
        self._seeded = True
        self.process.restart()
        return self._observe(), {}

    def step(self, actions: Any) -> tuple[Observation, Any, Any, Any, dict[str, Any]]:
        """Take the next latents (B, *shape) of all rows."""
        x = actions if isinstance(actions, Tensor) else torch.as_tensor(np.asarray(actions))
        check_actions(x, (self.num_envs, *self.process.shape))
        done = self.process.advance(x.to(self.process.latents.device, torch.float32))
        if not done:
            flags = self._out(self._false)
            return self._observe(), self._out(self._no_reward), flags, flags, {}
        rewards = self._out(self.process.score())
        infos = {"final_obs": self._observe(), "_final_obs": self._out(~self._false)}
        self.process.restart()
        return self._observe(), rewards, self._out(~self._false), self._out(self._false), infos

    def _observe(self) -> Observation:
        index = torch.full_like(self._false, self.process.step_index, dtype=torch.int64)
        return {"latent": self._out(self.process.latents), "step_index": self._out(index)}

    def _out(self, tensor: Tensor) -> Any:
        return tensor if self.array == "torch" else tensor.numpy()


def check_actions(actions: Tensor, expected: tuple[int, ...]) -> None:
    """Refuse actions of another shape or that are not finite.

    Raises:
        UserError: Naming what was given and what is expected.
    """
    if tuple(actions.shape) != expected:
        raise UserError(f"action: shape {tuple(actions.shape)} given, expected {expected}")
    if not torch.isfinite(actions).all():
        raise UserError("action: holds numbers that are not finite")
