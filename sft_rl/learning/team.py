"""The learners that train one model together, as the rest of the method sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from sft_rl.rollout.runner import Collector

T = TypeVar("T")


class Team:
    """One learner alone; ``sft_rl.distributed.team`` has several.

    All learners of a team hold the same networks and see the same trajectories, draw the same
    random numbers and compute the same losses. Only the passes through the networks, which cost
    the time, are divided: each learner takes its own rows of a batch. So every number of a team
    is that of one learner, up to the order of float additions.
    """

    leads = True
    """Whether this learner asks for trajectories, writes files and speaks to people."""

    @contextmanager
    def divide(self, *modules: nn.Module, by_vector: bool = False) -> Iterator[None]:
        """Divide the rows of every batch that goes through some modules, inside the block.

        With `by_vector` their last arguments are the vectors that samples are conditional on.
        """
        yield

    def split(self, *networks: nn.Module) -> None:
        """Leave this learner its part of networks' weights, if the team splits them.

        Their weights and gradients are split tensors then (``storage.dtensors``), and all learners
        make every pass together. Split networks cannot be copied.
        """

    def gather(self, *networks: nn.Module) -> None:
        """Give every learner all of networks that were split, for passes of its own."""

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Complete the gradients of divided modules, which so far know their own rows only."""

    def collector(self, make: Callable[[], Collector]) -> Collector:
        """Let the leader make a collector; all learners get what it collects."""
        return make()

    def leaders(self, value: T) -> T:
        """The leader's value, for all learners."""
        return value
