"""The MDP itself, batched, in torch: what the scalar and the vector env share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sft_rl.errors import UserError, did_you_mean
from sft_rl.policy import DenoisingPolicy
from sft_rl.rewards import Reward
from sft_rl.seeding import label_rows, normal_rows, row_keys
from sft_rl.types import given

RewardFunction = Callable[..., Tensor]
"""Maps final samples (B, *shape), and labels (B,) if there are classes, to scores (B,)."""

ACTIONS = ("next_latent", "noise", "epsilon")


class DenoisingProcess:
    """B denoising episodes that advance and end together.

    Row i draws its starting noise and its label from its own seed, so a batch of one gives the
    same episode as the same row of a large batch.

    Args:
        num_rows: Number of episodes B.
        num_steps: Number of denoising steps T.
        shape: Shape of one sample.
        reward: Scores final samples; None pays nothing (the learner scores them itself).
        action: What an action is: the next latent; the noise that is added to the pretrained
            sampler's mean; or the predicted noise, put into the sampler's step.
        policy: The pretrained sampler; needed unless the action is the next latent.
        num_classes: Number of classes, of which every episode gets a label; 0 for none.
        conditions: Vectors (K, D), of which every episode gets one in a label's place, or None.
        embeddings: What is observed of each class beside its number, (K, D), or None.
        drawn: Classes to draw labels from, int64, shape (N,); None draws from all.
        device: Where the latents live.

    Raises:
        UserError: For an unknown action mode, or one that lacks its sampler, or noise in it.
    """

    def __init__(
        self,
        *,
        num_rows: int,
        num_steps: int,
        shape: tuple[int, ...],
        reward: RewardFunction | None = None,
        action: str = "next_latent",
        policy: DenoisingPolicy | None = None,
        num_classes: int = 0,
        conditions: Tensor | None = None,
        embeddings: Tensor | None = None,
        drawn: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if action not in ACTIONS:
            raise UserError(f"action: {action!r} is unknown; {did_you_mean(action, ACTIONS)}")
        if action != "next_latent" and policy is None:
            raise UserError(f"action: {action!r} moves a pretrained sampler; give preset or policy")
        if action == "noise" and policy is not None and not (policy.base_std > 0).any():
            raise UserError(
                "action: 'noise' moves nothing in a deterministic sampler; set sampler.eta or "
                "sampler.final_std above 0, or use 'next_latent' or 'epsilon'"
            )
        self.num_rows = num_rows
        self.num_steps = num_steps
        self.shape = shape
        self.reward = reward
        self._checked: RewardFunction | None = reward
        if reward is not None and not isinstance(reward, Reward):
            self._checked = Reward(
                reward,
                name="reward",
                num_classes=num_classes,
                by_vector=conditions is not None,
                device=device,
            )
        self.action = action
        self.policy = policy
        self.num_classes = num_classes
        self.conditions = conditions
        self.embeddings = embeddings
        self.drawn = drawn
        self.latents = torch.zeros(num_rows, *shape, device=device)
        self.labels: Tensor | None = None
        self.step_index = 0
        self._episode = -1
        self._keys = torch.zeros(num_rows, dtype=torch.int64, device=device)

    def seed(self, seeds: Tensor) -> None:
        """Give every row its seed, int64, shape (B,); the next episode is their first."""
        self._keys = row_keys(seeds.to(self.latents.device))
        self._episode = -1

    def restart(self, latents: Tensor | None = None, labels: Tensor | None = None) -> None:
        """Start the next episode, from fresh noise N(0, I) and labels, or from given ones.

        Labels are classes (B,) or vectors (B, D).
        """
        self._episode += 1
        self.step_index = 0
        device = self.latents.device
        self.latents = self._noise(0) if latents is None else latents.to(device)
        if labels is not None:
            self.labels = labels.to(device)
        elif self.conditions is not None:
            rows = label_rows(self._keys, self._episode, len(self.conditions))
            self.labels = self.conditions[rows]
        elif self.drawn is not None:
            self.labels = self.drawn[label_rows(self._keys, self._episode, len(self.drawn))]
        elif self.num_classes:
            self.labels = label_rows(self._keys, self._episode, self.num_classes)

    def asked(self) -> dict[str, Tensor]:
        """What observations say of what samples are conditional on, by name, a row an episode."""
        if self.labels is None:
            return {}
        if self.conditions is not None:
            return {"condition": self.labels}
        of_each = {} if self.embeddings is None else {"condition": self.embeddings[self.labels]}
        return {"label": self.labels, **of_each}

    def advance(self, actions: Tensor) -> bool:
        """Take one denoising step; return whether the episodes ended.

        Raises:
            UserError: If they had ended before, or were not started.
        """
        if self._episode < 0 or self.step_index == self.num_steps:
            raise UserError("step: the episode has ended or was not started, call reset()")
        self.latents = self._next_latents(actions)
        self.step_index += 1
        return self.step_index == self.num_steps

    def score(self) -> Tensor:
        """Score the final samples, shape (B,).

        Raises:
            UserError: If the reward returns another shape or numbers not finite.
        """
        if self._checked is None:
            return self.latents.new_zeros(self.num_rows)
        with torch.no_grad():
            return self._checked(self.latents, *given(self.labels))

    def _next_latents(self, actions: Tensor) -> Tensor:
        if self.action == "next_latent":
            return actions
        assert self.policy is not None
        k = torch.tensor(self.step_index, device=self.latents.device)
        with torch.no_grad():
            if self.action == "noise":
                mean, noise = self.policy.mean(self.latents, k, self.labels), actions
            else:
                mean = self.policy.mean_from_output(self.latents, actions, k)
                noise = self._noise(self.step_index + 1)
            return mean + self.policy.step_std(k) * noise

    def _noise(self, draw: int) -> Tensor:
        """Standard normal noise of this episode, each row from its own seed; 0 is its start."""
        return normal_rows(self._keys, self._episode * (self.num_steps + 1) + draw, self.shape)
