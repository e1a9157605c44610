"""What every critic offers."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from sft_rl.config import Section
from sft_rl.storage.state import Stateful
from sft_rl.types import Loss


class Critic(Stateful, nn.Module):
    """Scores final samples; higher is more like the data.

    Everything a critic knows stands in its ``state_dict``, or is declared by ``state()``, so that
    it can be saved and resumed.
    If the model is conditional on a class, both methods get labels as last argument, int64,
    shape (B,); else they get none, and need not take them.

    A user's own, ``critic.objective=module:Class``, is built as ``Class(options, shape)`` with an
    instance of its :attr:`Options` and the shape of one sample.
    """

    Options: ClassVar[type[Section]] = Section
    """The options it takes, a section of settings of its own: ``options.NAME`` on the command line
    for a user's critic."""

    differentiates_twice: bool = True
    """Whether its loss may hold a gradient, or calls the critic in other ways than ``critic(x)``:
    then learners that split networks leave it whole."""

    @property
    def called(self) -> tuple["Critic", ...]:
        """The critics whose calls are divided among learners: itself, or those that it asks."""
        return (self,)

    def forward(self, x: Tensor, *labels: Tensor) -> Tensor:
        """Score samples (B, *shape), shape (B,); differentiable in x."""
        raise NotImplementedError

    def loss(
        self, real: Tensor, generated: Tensor, generator: torch.Generator, *labels: Tensor
    ) -> Loss:
        """Compare a batch of real with one of generated samples, both (B, *shape).

        Row i is of the same class in both batches, if there are classes.

        The value is to be minimised over the critic's parameters. A critic without parameters
        stores what it needs of the batches instead. One with parameters may get the batches part by
        part (`training.micro_batch_size`), so its value is a mean over samples.
        """
        raise NotImplementedError

    def after_step(self) -> None:
        """Restore the critic's constraints after an optimiser step."""
