"""The denoising MDP of SFT-PG as Gymnasium environments, scalar and batched."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from envs.process import DenoisingProcess, RewardFunction
from envs.rendering import draw_latents
from envs.spaces import action_space, check_choice, observation_space
from envs.starts import given_start
from sft_rl.errors import NotFiniteError, UserError
from sft_rl.policy import DenoisingPolicy

ARRAYS = ("numpy", "torch")


class DenoisingEnv(gym.Env[Any, np.ndarray]):
    """Denoise one sample, step by step.

    ## Action space
    ``Box(-action_bound, action_bound, shape)``. The env takes any finite action; the bound is for
    libraries that clip or rescale to it, and so wide by default that clipping cuts nothing. By
    ``action``:

    * ``next_latent``: the next latent x_{k+1}, in model units (std 1); the paper's choice.
    * ``noise``: a in x_{k+1} = mu_pretrained(x_k) + sigma_k * a, unitless: the standard normal
      policy *is* the pretrained sampler.
    * ``epsilon``: the predicted noise, put into the pretrained sampler's step, whose own noise
      the env adds.

    ## Observation space
    By ``observation``: ``dict`` is ``latent``, ``Box(shape)`` in model units, and ``step_index``,
    ``Discrete(T + 1)``, the number of steps taken, and with classes ``label``,
    ``Discrete(num_classes)``, the class that the sample is to be of, or with vectors ``condition``,
    ``Box(D)``, standardised; with prompts ``label`` is one's number, and ``condition`` what tells
    its embedding from others'. ``flat`` is one ``Box`` with the latent and the step as a share of
    T, without either.

    ## Rewards
    0 at every step but the last; there the score of the final sample.

    ## Starting state
    ``latent`` ~ N(0, I), ``step_index`` 0, ``label`` uniform, ``condition`` a training sample's.

    ## Episode end
    Terminated after T steps. Never truncated.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012

    def __init__(
        self,
        *,
        num_steps: int,
        shape: tuple[int, ...],
        reward: RewardFunction | None = None,
        action: str = "next_latent",
        action_bound: float | None = None,
        observation: str = "dict",
        policy: DenoisingPolicy | None = None,
        num_classes: int = 0,
        conditions: torch.Tensor | None = None,
        embeddings: torch.Tensor | None = None,
        drawn: torch.Tensor | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.process = DenoisingProcess(
            num_rows=1,
            num_steps=num_steps,
            shape=shape,
            reward=reward,
            action=action,
            policy=policy,
            num_classes=num_classes,
            conditions=conditions,
            embeddings=embeddings,
            drawn=drawn,
        )
        self.observation = observation
        self.render_mode = render_mode
        self.observation_space = observation_space(self.process, observation)
        self.action_space = action_space(shape, action, action_bound)
        self._seeded = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; the same seed gives the same starting noise.

        Args:
            seed: Of this episode and those that follow.
            options: Where this episode starts instead: ``latent`` (*shape), ``label``,
                ``condition`` (D,), or a latent with one of these.

        Raises:
            UserError: If an option is unknown, or of another shape.
        """
        start = given_start(options, lead=(), process=self.process)
        super().reset(seed=seed)
        if seed is not None:
            self.process.seed(torch.tensor([seed]))
        elif not self._seeded:
            self.process.seed(torch.from_numpy(self.np_random.integers(2**62, size=1)))
        self._seeded = True
        self.process.restart(*(None if x is None else x[None] for x in start))
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action; see the class for the rest.

        Raises:
            UserError: If the episode has ended, or the action's shape or numbers are wrong.
        """
        x = as_tensor(action)
        check_actions(x, self.process.shape)
        done = self.process.advance(x[None])
        reward = float(self.process.score()) if done else 0.0
        return self._observe(), reward, done, False, {}

    def render(self) -> np.ndarray | None:
        """Draw the latent as it stands, uint8, shape (height, width, 3)."""
        return draw_latents(self.process.latents) if self.render_mode == "rgb_array" else None

    def _observe(self) -> Any:
        latent = self.process.latents[0].numpy().copy()
        if self.observation == "flat":
            progress = np.float32(self.process.step_index / self.process.num_steps)
            return np.append(latent.ravel(), progress)
        seen = {"latent": latent, "step_index": np.int64(self.process.step_index)}
        for name, rows in self.process.asked().items():
            seen[name] = np.int64(rows[0]) if rows.ndim == 1 else rows[0].numpy().copy()
        return seen


class DenoisingVectorEnv(VectorEnv[Any, Any, Any]):
    """Denoise a batch of samples at once: one batched env, not a loop over scalar ones.

    Row i of an env seeded with s is the scalar env seeded with s + i. All episodes have the same
    length, so they end together, and the next ones start in the same step
    (``AutoresetMode.SAME_STEP``); the last observation is ``infos["final_obs"]``. Spaces and
    rewards are those of :class:`DenoisingEnv`.

    Args:
        num_envs: Number of episodes B.
        num_steps: Number of denoising steps T.
        shape: Shape of one sample.
        reward: Scores final samples (B, *shape); None pays 0.
        action: ``"next_latent"``, ``"noise"`` or ``"epsilon"``.
        action_bound: Bound of the declared action space; None takes a wide one.
        observation: ``"dict"`` or ``"flat"``.
        policy: The pretrained sampler, for the last two actions.
        num_classes: Number of classes of a class-conditional model; 0 for none.
        conditions: Vectors (K, D) to draw those from that samples are conditional on, or None.
        embeddings: What is observed of each class as ``condition``, (K, D), or None.
        drawn: Classes to draw labels from, int64, shape (N,); None draws from all.
        array: ``"numpy"``, or ``"torch"`` for tensors that are neither copied nor moved.
        device: Where the latents live; only with ``array="torch"``.
        render_mode: ``"rgb_array"`` to draw one picture a sample, as Gymnasium's wrappers want it;
            ``"together"`` to draw all samples into one.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's own declaration)
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": ["rgb_array", "together"],
        "render_fps": 4,
    }

    def __init__(
        self,
        *,
        num_envs: int,
        num_steps: int,
        shape: tuple[int, ...],
        reward: RewardFunction | None = None,
        action: str = "next_latent",
        action_bound: float | None = None,
        observation: str = "dict",
        policy: DenoisingPolicy | None = None,
        num_classes: int = 0,
        conditions: torch.Tensor | None = None,
        embeddings: torch.Tensor | None = None,
        drawn: torch.Tensor | None = None,
        array: str = "numpy",
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        check_choice("array", array, ARRAYS)
        if array == "numpy" and torch.device(device).type != "cpu":
            raise UserError(f"device: array='numpy' lives on the cpu, got {device}; use 'torch'")
        self.num_envs = num_envs
        self.autoreset_mode = self.metadata["autoreset_mode"]  # as Gymnasium's own have it
        self.array = array
        self.observation = observation
        self.render_mode = render_mode
        self.process = DenoisingProcess(
            num_rows=num_envs,
            num_steps=num_steps,
            shape=shape,
            reward=reward,
            action=action,
            policy=policy,
            num_classes=num_classes,
            conditions=conditions,
            embeddings=embeddings,
            drawn=drawn,
            device=device,
        )
        self.single_observation_space = observation_space(self.process, observation)
        self.single_action_space = action_space(shape, action, action_bound)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._seeded = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start all episodes; row i starts as the scalar env with ``seed + i`` does.

        Args:
            seed: Of these episodes and those that follow.
            options: Where these episodes start instead, as of the scalar env: ``latent``
                (B, *shape), ``label`` (B,), ``condition`` (B, D). Rows that share one make a group.

        Raises:
            UserError: If an option is unknown, or of another shape.
        """
        lead, process = (self.num_envs,), self.process
        start = given_start(options, lead=lead, process=process)
        super().reset(seed=seed)
        if seed is not None:
            self.process.seed(torch.arange(self.num_envs) + seed)
        elif not self._seeded:
            self.process.seed(torch.from_numpy(self.np_random.integers(2**62, size=self.num_envs)))
        self._seeded = True
        process.restart(*start)
        return self._observe(), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take the actions (B, *shape) of all rows.

        Raises:
            UserError: If the env was not reset, or the actions' shape or numbers are wrong.
        """
        x = as_tensor(actions)
        check_actions(x, (self.num_envs, *self.process.shape))
        done = self.process.advance(x.to(self.process.latents.device))
        rewards = self._out(self.process.score()) if done else self._all(np.float32(0.0))
        infos: dict[str, Any] = {}
        if done:
            infos = {"final_obs": self._observe(), "_final_obs": self._all(True)}
            infos |= {"final_info": {}, "_final_info": self._all(True)}
            self.process.restart()
        return self._observe(), rewards, self._all(done), self._all(False), infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Draw the latents as they stand: see :meth:`draw`."""
        return self.draw(self.process.latents)

    def draw(self, latents: Tensor) -> tuple[np.ndarray, ...] | None:
        """Draw latents (B, *shape), uint8, shape (height, width, 3): each, or all in one picture.

        None without a `render_mode`.
        """
        if self.render_mode is None:
            return None
        parts = latents[None] if self.render_mode == "together" else latents[:, None]
        return tuple(draw_latents(part) for part in parts)

    def _observe(self) -> Any:
        latents, k = self.process.latents, self.process.step_index
        if self.observation == "flat":
            progress = latents.new_full((self.num_envs, 1), k / self.process.num_steps)
            return self._out(torch.cat([latents.flatten(1), progress], dim=1))
        seen = {"latent": self._out(latents), "step_index": self._all(k)}
        return seen | {name: self._out(rows) for name, rows in self.process.asked().items()}

    def _all(self, value: Any) -> Any:
        """The same value for every row."""
        if self.array == "numpy":
            array = np.empty(self.num_envs, type(value))  # half the time of np.full
            array.fill(value)
            return array
        return torch.full((self.num_envs,), value, device=self.process.latents.device)

    def _out(self, tensor: Tensor) -> Any:
        """Hand out a tensor; as numpy it is a copy, which the receiver may keep and change."""
        return tensor.numpy().copy() if self.array == "numpy" else tensor


def as_tensor(actions: Any) -> Tensor:
    """Actions as float32, without a copy if they are float32 arrays or tensors already."""
    if isinstance(actions, Tensor):
        return actions.float()
    return torch.from_numpy(np.asarray(actions, dtype=np.float32))


def check_actions(actions: Tensor, expected: tuple[int, ...]) -> None:
    """Refuse actions of another shape or that are not finite.

    Raises:
        UserError: Naming what was given and what is expected.
        NotFiniteError: If a number is not finite.
    """
    if tuple(actions.shape) != expected:
        raise UserError(f"action: shape {tuple(actions.shape)} given, expected {expected}")
    # A sum is many times faster than a look at every number; one bad number makes it bad.
    if not math.isfinite(actions.sum().item()) and not torch.isfinite(actions).all():
        raise NotFiniteError("action: holds numbers that are not finite")
