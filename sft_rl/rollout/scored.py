"""Trajectories with the scores of the rewards that score each of them once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue

from torch import Tensor

from sft_rl.rollout.runner import Collector, Request
from sft_rl.types import Trajectories, given


class ScoredCollector:
    """Scores what another collector draws, as it arrives.

    Args:
        collector: Who draws.
        score: Scores final samples (B, *shape), and labels (B,) if there are classes, by K
            rewards, shape (K, B).
    """

    def __init__(self, collector: Collector, score: Callable[..., Tensor]) -> None:
        self.collector = collector
        self.score = score
        self._requests: deque[Request] = deque()

    def submit(self, request: Request) -> None:
        """Pass the order on."""
        self._requests.append(request)
        self.collector.submit(request)

    def results(self) -> Iterator[Trajectories]:
        """Yield the shards of the oldest request, scored but for the first `num_unscored`."""
        request = self._requests.popleft()
        for index, shard in enumerate(self.collector.results()):
            yield shard if index < request.num_unscored else self.scored(shard)

    def scored(self, shard: Trajectories) -> Trajectories:
        """A shard with its scores."""
        return replace(shard, rewards=self.score(shard.final.float(), *given(shard.labels)))

    def close(self) -> None:
        """Let go of everything."""
        self._requests.clear()
        self.collector.close()


class ScoredAheadCollector(ScoredCollector):
    """Has shards scored elsewhere while others are drawn, and while the learner updates.

    Shards are yielded in their order, whoever scored them when. What draws must do so in other
    processes, as it is asked from a thread here.

    Args:
        collector: Who draws.
        score: As of :class:`ScoredCollector`; called by several threads.
        at_once: How many shards are scored at a time.
    """

    def __init__(self, collector: Collector, score: Callable[..., Tensor], *, at_once: int) -> None:
        super().__init__(collector, score)
        self._drawing = ThreadPoolExecutor(1, "drawing")
        self._scoring = ThreadPoolExecutor(at_once, "scored")
        self._pending: deque[tuple[Request, SimpleQueue[Future[Trajectories]]]] = deque()
        self._closed = False

    def submit(self, request: Request) -> None:
        """Order in the background, with a copy of the weights, which the learner changes."""
        weights = {name: array.copy() for name, array in request.weights.items()}
        order, arrived = replace(request, weights=weights), SimpleQueue[Future[Trajectories]]()
        self._pending.append((order, arrived))
        self._drawing.submit(self._draw, order, arrived)

    def results(self) -> Iterator[Trajectories]:
        """Yield the shards of the oldest request, scored but for the first `num_unscored`."""
        request, arrived = self._pending.popleft()
        for _ in range(request.num_shards):
            yield arrived.get().result()

    def _draw(self, request: Request, arrived: SimpleQueue[Future[Trajectories]]) -> None:
        try:
            self.collector.submit(request)
            for index, shard in enumerate(self.collector.results()):
                if self._closed:
                    return
                if index >= request.num_unscored:
                    arrived.put(self._scoring.submit(self.scored, shard))
                    continue
                unscored: Future[Trajectories] = Future()
                unscored.set_result(shard)
                arrived.put(unscored)
        except BaseException as error:  # for the learner, which waits for shards
            failed: Future[Trajectories] = Future()
            failed.set_exception(error)
            arrived.put(failed)

    def close(self) -> None:
        """Stop after the shard that is being drawn."""
        self._closed = True
        self._drawing.shutdown(cancel_futures=True)
        self._scoring.shutdown(wait=False, cancel_futures=True)
        super().close()
