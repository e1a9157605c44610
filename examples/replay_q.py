"""An off-policy algorithm: a replay buffer, a Q-network and an optimiser of its own.

Q(s_k, a_k) predicts the score of the final sample; since the action is the next latent, it looks at
that and at k. The policy climbs it at states of the buffer by the reparameterised gradient, as SAC
does. Modules and optimisers are saved by themselves, the buffer by `state()`. From the root:

    sft-rl train swiss_roll algorithm=examples.replay_q:ReplayQ
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sft_rl.algorithms import Algorithm, Networks
from sft_rl.config import Section
from sft_rl.storage.state import State
from sft_rl.types import Loss, Trajectories


class ReplayQ(Algorithm):
    """-E[Q(s_k, mu(s_k) + sigma_k z)] over states of the buffer; for points without classes."""

    class Options(Section):
        """Its settings."""

        capacity: int = 1024
        """Trajectories that are remembered."""
        q_steps: int = 4
        """Steps of Q for each of the policy."""

    def begin(self, networks: Networks) -> None:
        """Make the Q-network, its optimiser and an empty buffer."""
        steps, dim = networks.policy.num_steps, networks.policy.shape[0]
        layers = (nn.Linear(dim + 1, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
        self.q = nn.Sequential(*layers).to(networks.policy.device)
        self.optimizer = torch.optim.Adam(self.q.parameters(), lr=1e-3)
        device = networks.policy.device
        self.latents = torch.zeros(steps + 1, self.options.capacity, dim, device=device)
        self.scores = torch.zeros(self.options.capacity, device=device)
        self.num_seen = 0

    def state(self) -> State:
        """The buffer; the default `load_state` puts it back."""
        return {"latents": self.latents, "scores": self.scores, "num_seen": self.num_seen}

    @torch.no_grad()
    def prepare(self, trajectories: Trajectories, networks: Networks) -> None:
        """Remember the trajectories with their scores, in place of the oldest."""
        for latents, score in zip(
            trajectories.latents.unbind(1), networks.critic(trajectories.final), strict=True
        ):
            place = self.num_seen % self.options.capacity
            self.latents[:, place], self.scores[place] = latents, score
            self.num_seen += 1

    def batches(self, prepared: None, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        """Train Q on remembered actions; yield remembered states (N, dim), their k, and noise."""
        size, device = self.training.batch_size, self.scores.device
        known = min(self.num_seen, self.options.capacity)
        for _ in range(self.training.n_generator):
            for _ in range(self.options.q_steps):
                rows = torch.randint(known, (size,), generator=generator, device=device)
                k = torch.randint(
                    len(self.latents) - 1, (size,), generator=generator, device=device
                )
                error = self._q(self.latents[k + 1, rows], k) - self.scores[rows]
                self.optimizer.zero_grad()
                error.square().mean().backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
            states = self.latents[k, rows]
            yield states, k, torch.randn(states.shape, generator=generator, device=device)

    def loss(self, batch: tuple[Tensor, ...], networks: Networks) -> Loss:
        """Return minus what Q expects of the policy's own actions."""
        latents, k, noise = batch
        policy = networks.policy
        expected = self._q(policy.mean(latents, k) + policy.step_std(k) * noise, k)
        return Loss(-expected.mean(), {"q_mean": expected.mean(), "remembered": self.num_seen})

    def _q(self, actions: Tensor, k: Tensor) -> Tensor:
        progress = (k[:, None] + 1.0) / (len(self.latents) - 1)
        return self.q(torch.cat([actions, progress], dim=1)).squeeze(-1)  # type: ignore[no-any-return]
