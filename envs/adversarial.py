"""A reward that learns: the env plays the critic's side of the minimax game itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Adam

from sft_rl.critics import Critic
from sft_rl.data import Dataset
from sft_rl.errors import UserError
from sft_rl.networks.conditions import keep_prompts
from sft_rl.seeding import generator
from sft_rl.storage.checkpoint import TensorGroups
from sft_rl.storage.state import load_optimizer_tensors, optimizer_tensors
from sft_rl.types import given


class AdversarialReward:
    """Trains a critic online on the final samples it is asked to score, against real data.

    An outside algorithm that maximises this reward does shortcut fine-tuning without knowing of
    critics. Scores are shifted and scaled to mean 0 and standard deviation 1 over the remembered
    samples, so that the reward's size does not depend on how far the game has gone.

    Args:
        critic: The critic, trained in place.
        data: Real samples.
        num_classes: Number of classes of a class-conditional model; 0 for none.
        learning_rate: Adam's learning rate.
        adam_betas: Adam's betas.
        batch_size: Real and generated samples of a critic step.
        update_every: New samples after which the critic takes its steps.
        num_updates: Critic steps each time.
        buffer_size: How many of the newest samples are remembered.
        seed: Seed of the batches.

    Raises:
        UserError: If a size or rate is not positive, or the critic has nothing to learn.
    """

    def __init__(
        self,
        critic: Critic,
        data: Dataset,
        *,
        num_classes: int = 0,
        learning_rate: float = 2e-3,
        adam_betas: tuple[float, float] = (0.5, 0.9),
        batch_size: int = 256,
        update_every: int = 256,
        num_updates: int = 2,
        buffer_size: int = 1024,
        seed: int = 0,
    ) -> None:
        sizes = {
            "batch_size": batch_size,
            "update_every": update_every,
            "num_updates": num_updates,
            "buffer_size": buffer_size,
            "learning_rate": learning_rate,
        }
        for name, value in sizes.items():
            if value <= 0:
                raise UserError(f"reward_options.{name}: must be positive, got {value}")
        if not critic.state_dict():
            raise UserError("reward: 'adversarial' trains a critic; this one has nothing to learn")
        keep_prompts(critic, (data.embeddings or {}).get("prompts"))
        self.critic = critic.eval()
        self.data = data
        self.batch_size = batch_size
        self.update_every = update_every
        self.num_updates = num_updates
        self.seed = seed
        parameters = list(critic.parameters())
        self.optimizer = (
            Adam(parameters, lr=learning_rate, betas=adam_betas) if parameters else None
        )
        device = next(iter(critic.state_dict().values())).device
        self._buffer = torch.zeros(buffer_size, *data.shape, device=device)
        self._labels: Tensor | None = None
        if data.conditions is not None:
            width = data.conditions.shape[1]
            self._labels = torch.zeros(buffer_size, width, device=device)
        elif num_classes:
            self._labels = torch.zeros(buffer_size, dtype=torch.int64, device=device)
        self._num_seen = 0
        self._num_waiting = 0
        self._num_steps = 0

    def __call__(self, samples: Tensor, *labels: Tensor) -> Tensor:
        """Remember samples (B, *shape), step the critic if it is due, return scores (B,).

        Labels (B,) are wanted if there are classes.
        """
        samples = samples.detach().to(self._buffer.device)
        size = len(self._buffer)
        newest = samples[-size:]
        index = (self._num_seen + torch.arange(len(newest), device=samples.device)) % size
        self._buffer[index] = newest
        for own, new in zip(given(self._labels), labels, strict=True):
            own[index] = new.to(own.device)[-size:]
        self._num_seen += len(newest)
        self._num_waiting += len(samples)
        if self._num_waiting >= self.update_every:
            self._num_waiting = 0
            self._update()
        with torch.no_grad():
            known = self.critic(*self._remembered())
            spread = known.std() if len(known) > 1 else known.new_ones(())
            return torch.div(self.critic(samples, *labels) - known.mean(), spread + 1e-8)

    def _remembered(self) -> list[Tensor]:
        """Samples, and their labels if there are classes."""
        num = min(self._num_seen, len(self._buffer))
        return [kept[:num] for kept in (self._buffer, *given(self._labels))]

    @torch.inference_mode(False)  # whatever mode the caller steps the env in
    @torch.enable_grad()
    def _update(self) -> None:
        remembered, *labels = self._remembered()
        for _ in range(self.num_updates):
            source = generator(
                self.seed, "adversarial reward", self._num_steps, device=remembered.device
            )
            rows = torch.randint(
                len(remembered), (self.batch_size,), generator=source, device=remembered.device
            )
            own = [kept[rows] for kept in labels]
            real = self.data.batch(self.batch_size, source, *own)
            self.critic.train()
            loss = self.critic.loss(real, remembered[rows], source, *own)
            self.critic.eval()
            if self.optimizer is not None:
                self.optimizer.zero_grad(set_to_none=True)
                loss.value.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                self.critic.after_step()
            self._num_steps += 1

    def state(self) -> TensorGroups:
        """Everything needed to go on, for a checkpoint (see ``sft_rl.storage.checkpoint``)."""
        counts = torch.tensor([self._num_seen, self._num_waiting, self._num_steps])
        groups = {
            "reward_critic": dict(self.critic.state_dict()),
            "reward_samples": {"buffer": self._buffer, "counts": counts},
        }
        if self._labels is not None:
            groups["reward_samples"]["labels"] = self._labels
        if self.optimizer is not None:
            groups["reward_optimizer"] = optimizer_tensors(self.optimizer)
        return groups

    def load_state(self, groups: TensorGroups) -> None:
        """Undo :meth:`state`."""
        self.critic.load_state_dict(groups["reward_critic"])
        self._buffer.copy_(groups["reward_samples"]["buffer"])
        if self._labels is not None:
            self._labels.copy_(groups["reward_samples"]["labels"])
        counts = groups["reward_samples"]["counts"].tolist()
        self._num_seen, self._num_waiting, self._num_steps = counts
        if self.optimizer is not None:
            load_optimizer_tensors(self.optimizer, groups["reward_optimizer"])
