"""What every critic offers."""

import torch
from torch import Tensor, nn

from sft_rl.types import Loss


class Critic(nn.Module):
    """Scores final samples; higher is more like the data.

    Everything a critic knows stands in its ``state_dict``, so that it can be saved and resumed.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Score samples (B, *shape), shape (B,); differentiable in x."""
        raise NotImplementedError

    def loss(self, real: Tensor, generated: Tensor, generator: torch.Generator) -> Loss:
        """Compare a batch of real with one of generated samples, both (B, *shape).

        The value is to be minimised over the critic's parameters. A critic without parameters
        stores what it needs of the batches instead. One with parameters may get the batches part by
        part (`training.micro_batch_size`), so its value is a mean over samples.
        """
        raise NotImplementedError

    def after_step(self) -> None:
        """Restore the critic's constraints after an optimiser step."""
