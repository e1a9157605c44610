"""Several learners that train one model together, over ``torch.distributed``."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sft_rl.learning.team import Team
from sft_rl.rollout.runner import Collector, Request
from sft_rl.storage.dtensors import is_split
from sft_rl.types import Trajectories

T = TypeVar("T")


class TorchTeam(Team):
    """The processes of the current process group; rank 0 leads.

    Every learner runs the same program, so that their collective calls meet.

    Args:
        splits: Whether each keeps only its part of the weights, gradients and moments.
    """

    def __init__(self, *, splits: bool = False) -> None:
        self.splits = splits
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.leads = self.rank == 0
        self._divided: set[nn.Parameter] = set()

    @contextmanager
    def divide(self, *modules: nn.Module, by_vector: bool = False) -> Iterator[None]:
        """See :meth:`Team.divide`. Modules take x (..., *shape), and may take t and labels."""
        divided = [module for module in modules if any(True for _ in module.parameters())]
        for module in divided:
            module.forward = partial(_on_own_rows, self, module.forward, by_vector)
            # What is split is summed on the way back, by FSDP itself.
            self._divided.update(p for p in module.parameters() if not is_split(p))
        try:
            yield
        finally:
            for module in divided:
                del module.forward  # the class's own comes to light again
            self._divided.clear()

    def split(self, *networks: nn.Module) -> None:
        """See :meth:`Team.split`."""
        if self.splits:
            from sft_rl.distributed import sharding  # here: FSDP is slow to import

            for network in networks:
                sharding.split(network)

    def gather(self, *networks: nn.Module) -> None:
        """See :meth:`Team.gather`."""
        if self.splits:
            from sft_rl.distributed import sharding

            for network in networks:
                sharding.gather(network)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """See :meth:`Team.sum_gradients`; one message for all of them."""
        grads = [p.grad for p in parameters if p.grad is not None and p in self._divided]
        if not grads:
            return
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        for grad, total in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
            grad.copy_(total.view_as(grad))

    def collector(self, make: Callable[[], Collector]) -> Collector:
        """See :meth:`Team.collector`."""
        return _SharedCollector(make() if self.leads else None, self)

    def leaders(self, value: T) -> T:
        """See :meth:`Team.leaders`."""
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def own_rows(self, num: int) -> slice:
        """This learner's share of `num` rows; shares differ by one at most."""
        return slice(num * self.rank // self.size, num * (self.rank + 1) // self.size)


class _SharedCollector:
    """The leader's collector, and what the others get from it."""

    def __init__(self, collector: Collector | None, team: Team) -> None:
        self._collector = collector
        self._team = team
        self._num_shards: deque[int] = deque()

    def submit(self, request: Request) -> None:
        """Order at the leader's collector."""
        self._num_shards.append(request.num_shards)
        if self._collector is not None:
            self._collector.submit(request)

    def results(self) -> Iterator[Trajectories]:
        """Yield the shards of the oldest request to every learner."""
        shards = None if self._collector is None else self._collector.results()
        for _ in range(self._num_shards.popleft()):
            yield _shared(None if shards is None else next(shards), self._team)

    def close(self) -> None:
        """Close the leader's collector."""
        if self._collector is not None:
            self._collector.close()


def _shared(trajectories: Trajectories | None, team: Team) -> Trajectories:
    """Send the leader's trajectories to all learners: what they are like, then tensor by tensor."""
    values = {} if trajectories is None else dict(vars(trajectories))
    tensors = {name: v.cpu().contiguous() for name, v in values.items() if isinstance(v, Tensor)}
    like = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    values, like = team.leaders(({k: v for k, v in values.items() if k not in like}, like))
    for name, one in like.items():
        tensor = tensors.setdefault(name, torch.empty_like(one, device="cpu"))
        dist.broadcast(tensor.view(torch.uint8), src=0)  # gloo knows few types
    found: dict[str, Any] = {**values, **tensors}
    return Trajectories(**found)


def _on_own_rows(
    team: TorchTeam, forward: Callable[..., Tensor], by_vector: bool, x: Tensor, *others: Tensor
) -> Tensor:
    """Put this learner's rows through a network; return the rows of all.

    The last of the leading dimensions is divided: B of a (T, B) grid, N of flat transitions. They
    are as many as t has, or labels, whose entries are one a row or one for all, and one where
    there are none. An entry is a number, or of the last argument a vector.
    """
    wide = [int(by_vector and other is others[-1]) for other in others]
    dims = [other.ndim - 1 - more for other, more in zip(others, wide, strict=True)]
    dim = max((own for own in dims if own >= 0), default=0)
    num = x.shape[dim]
    mine: list[Tensor] = [_Divide.apply(x, dim, team)]  # type: ignore[no-untyped-call]
    for other, own in zip(others, dims, strict=True):
        one_a_row = own >= 0 and other.shape[own] == num
        mine.append(_rows(other, own, team) if one_a_row else other)
    return _Join.apply(forward(*mine), dim, num, team)  # type: ignore[no-untyped-call]


def _rows(x: Tensor, dim: int, team: TorchTeam) -> Tensor:
    rows = team.own_rows(x.shape[dim])
    return x.narrow(dim, rows.start, rows.stop - rows.start)


class _Divide(torch.autograd.Function):
    """Take own rows of a tensor that all learners hold; all get the gradient of all rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, team: TorchTeam) -> Tensor:
        ctx.dim, ctx.num, ctx.team = dim, x.shape[dim], team
        return _rows(x, dim, team).clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Join.apply(grads[0], ctx.dim, ctx.num, ctx.team), None, None  # type: ignore[no-untyped-call]


class _Join(torch.autograd.Function):
    """Put the rows of all learners together; each gets the gradient of its own.

    Each fills its rows into zeros, and the sum of these is exact.
    """

    @staticmethod
    def forward(ctx: Any, part: Tensor, dim: int, num: int, team: TorchTeam) -> Tensor:
        ctx.dim, ctx.team = dim, team
        whole = part.new_zeros(*part.shape[:dim], num, *part.shape[dim + 1 :])
        _rows(whole, dim, team).copy_(part)
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Divide.apply(grads[0], ctx.dim, ctx.team), None, None, None  # type: ignore[no-untyped-call]
