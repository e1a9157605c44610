r"""Back-propagation of the critic through the sampling chain (the reparameterised gradient).

.. math::
    \nabla \Phi = -\mathbb{E}_{x_0, z}\bigl[\nabla_\theta f(x_T(\theta, x_0, z))\bigr], \qquad
    x_{k+1} = \mu_\theta(x_k, t_k) + \sigma_k z_k

The same expectation as the policy gradient's with far less variance, at the price of memory in T,
which activation checkpointing trades for a second forward pass. It needs no density: this is also
how a deterministic sampler (DDIM, eta = 0) is fine-tuned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sft_rl.algorithms.base import Algorithm, Networks
from sft_rl.config import PathwiseConfig
from sft_rl.policy import DenoisingPolicy
from sft_rl.types import Loss, Trajectories, given


@dataclass(frozen=True)
class Chain:
    """The beginning of some chains and the noise of the steps to take from there.

    Attributes:
        latents: States at step ``T - K``, shape (B, *shape).
        noise: Standard normal noise of the last K steps, shape (K, B, *shape).
        labels: Classes, shape (B,); None if the model is unconditional.
    """

    latents: Tensor
    noise: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, chains: slice) -> Chain:
        """Take some of the chains."""
        labels = None if self.labels is None else self.labels[chains]
        return Chain(self.latents[chains], self.noise[:, chains], labels)


class Pathwise(Algorithm):
    """Pathwise gradient through all steps, or the last K of them."""

    Options = PathwiseConfig
    options: PathwiseConfig
    needs_gradient = True
    splits_batches = True

    def num_density_steps(self, num_steps: int) -> int:
        """No step needs a density."""
        return 0

    def kept_calls(self, num_steps: int) -> tuple[int, int]:
        """One call for each step that is walked, or for one where they are computed again."""
        _, chains = super().kept_calls(num_steps)
        calls = min(self.options.num_last_steps or num_steps, num_steps)
        if self.options.checkpoint_activations:
            calls = 1
        return calls, min(chains, self.options.chains_per_update or chains)

    def prepare(self, trajectories: Trajectories, networks: Networks) -> Trajectories:
        """Nothing is shared: the chains start from the trajectories' own states."""
        return trajectories

    def batches(self, prepared: Trajectories, generator: torch.Generator) -> Iterator[Chain]:
        """Yield the chains of each of the `n_generator` policy steps, with fresh noise."""
        num_steps = prepared.num_steps
        num_last = min(self.options.num_last_steps or num_steps, num_steps)
        starts, labels = prepared.latents[num_steps - num_last], prepared.labels
        num_updates = self.training.n_generator
        size = min(self.options.chains_per_update or len(starts), len(starts) // num_updates)
        for i in range(num_updates):
            part = slice(i * size, (i + 1) * size)
            shape = (num_last, *starts[part].shape)
            noise = torch.randn(shape, generator=generator, device=starts.device)
            yield Chain(starts[part], noise, None if labels is None else labels[part])

    def loss(self, batch: Chain, networks: Networks) -> Loss:
        """Return minus the mean score of where the chains end."""
        final = walk(networks.policy, batch, checkpointed=self.options.checkpoint_activations)
        return Loss(-networks.score(final, *given(batch.labels)).mean(), {})


def walk(policy: DenoisingPolicy, chain: Chain, *, checkpointed: bool = False) -> Tensor:
    """Take the last K steps with gradients; return the final samples (B, *shape).

    Args:
        policy: The sampler.
        chain: States at step T - K and the noise to add.
        checkpointed: Keep only the latents in memory and compute each step again on the way back.
    """

    def step(latents: Tensor, k: Tensor, noise: Tensor) -> Tensor:
        return policy.mean(latents, k, chain.labels) + policy.step_std(k) * noise

    latents, first = chain.latents, policy.num_steps - len(chain.noise)
    for i, noise in enumerate(chain.noise):
        k = torch.tensor(first + i, device=latents.device)
        if checkpointed:
            latents = checkpoint(step, latents, k, noise, use_reentrant=False)
        else:
            latents = step(latents, k, noise)
    return latents
