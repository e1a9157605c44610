"""Rollout workers as Ray actors, and the pool that keeps them busy."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError
from ray.util import get_current_placement_group

from sft_rl.config import RolloutConfig
from sft_rl.rollout import Request, RolloutRunner, Weights
from sft_rl.types import Trajectories

MAX_IN_FLIGHT = 2
"""Calls queued at a worker, so that it never waits for the next one."""

STRATEGIES = {"spread": "SPREAD", "pack": "DEFAULT"}
"""Ray's default fills a node half before it takes the next."""

RunnerFactory = Callable[[], RolloutRunner]


class RolloutWorker:
    """Draws shards in a process of its own; holds no state that matters."""

    def __init__(self, make_runner: RunnerFactory, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self.runner = make_runner()

    def collect(self, iteration: int, shard: int, version: int, weights: Weights) -> dict[str, Any]:
        """Draw one shard with numbered weights; return plain arrays."""
        self.runner.load(version, weights)
        return self.runner.collect(iteration, shard).to_numpy()


@dataclass(frozen=True)
class _Task:
    iteration: int
    shard: int
    version: int
    weights: Any  # reference to the one put of this version


@dataclass
class _Slot:
    """A worker and the calls it has not answered yet."""

    actor: Any
    calls: dict[Any, _Task] = field(default_factory=dict)
    last_sign_of_life: float = field(default_factory=time.monotonic)


class RayCollector:
    """Spreads shards over rollout actors.

    Which worker draws a shard does not matter to the result, so any free one gets the next. A
    worker that dies or hangs is replaced and its shards are drawn again; an error raised by the
    worker's own code stops the run.

    Args:
        make_runner: Builds the runner inside a worker.
        config: Number of workers and what each may use.
    """

    def __init__(self, make_runner: RunnerFactory, config: RolloutConfig) -> None:
        self.config = config
        self._make_runner = ray.put(make_runner)
        self._slots = [self._start() for _ in range(config.num_workers)]
        self._waiting: deque[_Task] = deque()
        self._requests: deque[Request] = deque()
        self._done: dict[tuple[int, int], Trajectories] = {}
        self._put: tuple[int, Any] | None = None  # newest version and the reference to its weights
        self.num_replaced = 0

    def submit(self, request: Request) -> None:
        """Put the weights into the object store, once a version, and queue the shards."""
        if self._put is None or self._put[0] != request.version:
            self._put = (request.version, ray.put(request.weights))
        self._requests.append(request)
        self._waiting.extend(
            _Task(request.iteration, shard, *self._put) for shard in range(request.num_shards)
        )
        self._dispatch()

    def results(self) -> Iterator[Trajectories]:
        """Yield the shards of the oldest request in order, as soon as each is there."""
        request = self._requests.popleft()
        for shard in range(request.num_shards):
            self._receive(timeout=0.0)  # keeps the workers busy with what was ordered next
            while (request.iteration, shard) not in self._done:
                self._receive(timeout=1.0)
            yield self._done.pop((request.iteration, shard))

    def close(self) -> None:
        """Stop the workers."""
        for slot in self._slots:
            ray.kill(slot.actor)
        self._slots.clear()

    def _start(self) -> _Slot:
        # A trial of the search brings its own placement group, which workers must stay in.
        in_group = get_current_placement_group() is not None
        actor = ray.remote(RolloutWorker).options(
            num_cpus=self.config.num_cpus_per_worker,
            num_gpus=self.config.num_gpus_per_worker,
            scheduling_strategy=None if in_group else STRATEGIES[self.config.placement],
        )
        return _Slot(actor.remote(self._make_runner, self.config.num_threads))

    def _dispatch(self) -> None:
        while self._waiting:
            slot = min(self._slots, key=lambda slot: len(slot.calls))
            if len(slot.calls) >= MAX_IN_FLIGHT:
                return
            task = self._waiting.popleft()
            if not slot.calls:
                slot.last_sign_of_life = time.monotonic()
            call = slot.actor.collect.remote(task.iteration, task.shard, task.version, task.weights)
            slot.calls[call] = task

    def _receive(self, *, timeout: float) -> None:
        """Take the answers that are there within some seconds; find workers dead or hung."""
        calls = [call for slot in self._slots for call in slot.calls]
        ready, _ = ray.wait(calls, num_returns=1, timeout=timeout) if calls else ([], [])
        for slot in self._slots:
            for call in ready:
                if call in slot.calls:
                    self._take(slot, call)
            hung = time.monotonic() - slot.last_sign_of_life > self.config.timeout_s
            if slot.calls and hung:
                self._replace(slot)
        self._dispatch()

    def _take(self, slot: _Slot, call: Any) -> None:
        try:
            trajectories = Trajectories.from_numpy(ray.get(call))
        except RayActorError:
            self._replace(slot)
            return
        task = slot.calls.pop(call)
        slot.last_sign_of_life = time.monotonic()
        assert trajectories.policy_version == task.version, "a worker used other weights"
        self._done[task.iteration, task.shard] = trajectories

    def _replace(self, slot: _Slot) -> None:
        """Start a fresh worker in a slot and queue its unanswered shards first."""
        ray.kill(slot.actor)
        self._waiting.extendleft(reversed(slot.calls.values()))
        fresh = self._start()
        slot.actor, slot.calls, slot.last_sign_of_life = fresh.actor, {}, fresh.last_sign_of_life
        self.num_replaced += 1
