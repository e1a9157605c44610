"""Rollout workers as Ray actors, and the pool that keeps them busy."""

from __future__ import annotations

import heapq
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError

from sft_rl.config import RolloutConfig
from sft_rl.distributed.actors import start_actor
from sft_rl.distributed.metrics import WorkerMetrics
from sft_rl.distributed.nodes import node_ids
from sft_rl.distributed.secrets import receive_secrets
from sft_rl.errors import RunFailed, UserError, last_line
from sft_rl.rollout.runner import Request, RolloutRunner, Weights
from sft_rl.types import Trajectories

MAX_IN_FLIGHT = 2
"""Calls queued at a worker of what is waited for: the fastest worker takes the next one."""

MAX_LOSSES = 3
"""Workers that a shard may be lost on in a row, none answering in between and no node leaving: so
many do not die by accident."""

START_S = 120.0
"""Seconds a new worker gets for its first shard; and after which one that has no place on any node
is told of."""

ROOM_S = 900.0
"""Seconds that a run without any worker waits for a place for one."""

POLL_S = 0.01
"""How often answers are looked for while shards that are there are passed on."""

STRATEGIES = {"spread": "SPREAD", "pack": "DEFAULT"}
"""Ray's default fills a node half before it takes the next."""

RunnerFactory = Callable[[], RolloutRunner]


class RolloutWorker:
    """Draws shards in a process of its own; holds no state that matters."""

    def __init__(
        self, make_runner: RunnerFactory, num_threads: int, exported_as: str | None
    ) -> None:
        torch.set_num_threads(num_threads)
        receive_secrets()
        self.runner = make_runner()
        self.metrics = None if exported_as is None else WorkerMetrics(exported_as)

    def collect(self, iteration: int, shard: int, version: int, weights: Weights) -> dict[str, Any]:
        """Draw one shard with numbered weights; return plain arrays."""
        begun = time.perf_counter()
        self.runner.load(version, weights)
        drawn = self.runner.collect(iteration, shard)
        if self.metrics is not None:
            self.metrics.drawn(len(drawn), time.perf_counter() - begun)
        return drawn.to_numpy()


@dataclass(frozen=True)
class _Task:
    iteration: int
    shard: int
    version: int
    weights: Any  # reference to the one put of this version


@dataclass(eq=False)
class _Slot:
    """A worker and the calls it has not answered yet.

    Attributes:
        actor: It.
        starting: The call that it answers once it has a place and has started; then none.
        calls: What it draws.
        last_sign_of_life: When it was last heard of.
        is_new: Whether it has drawn nothing yet.
        is_told_of: Whether it waits for a place so long that it was told of.
        nodes: The nodes that there were when it was asked for.
    """

    actor: Any
    starting: Any
    nodes: frozenset[str]
    calls: dict[Any, _Task] = field(default_factory=dict)
    last_sign_of_life: float = field(default_factory=time.monotonic)
    is_new: bool = True
    is_told_of: bool = False

    def is_hung(self, timeout_s: float) -> bool:
        """Whether it has calls and has not answered one for too long."""
        allowed = max(timeout_s, START_S) if self.is_new else timeout_s
        return bool(self.calls) and time.monotonic() - self.last_sign_of_life > allowed


class RayCollector:
    """Spreads shards over rollout actors.

    Which worker draws a shard does not matter to the result, so any free one gets the next. A
    worker that dies or hangs is replaced and its shards are drawn again, by those that are there:
    where nodes leave, its successor may wait for a place, and gets no shards until it has one. An
    error raised by the worker's own code stops the run, and so does a shard that is lost again and
    again.

    Args:
        make_runner: Builds the runner inside a worker.
        config: Number of workers and what each may use.
        run: The run's name, which is in those of the workers.
        exports: Whether workers set metrics of Ray.
        warn: Is told when a worker is replaced.
    """

    def __init__(
        self,
        make_runner: RunnerFactory,
        config: RolloutConfig,
        *,
        run: str = "run",
        exports: bool = False,
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.config = config
        self.run = run
        self.exports = exports
        self.warn = warn
        self._num_started = 0
        self._make_runner = ray.put(make_runner)
        self._calls: dict[Any, _Slot] = {}  # unanswered, and who has each
        self._slots = [self._filled() for _ in range(config.num_workers)]
        self._polled = 0.0
        self._waiting: deque[_Task] = deque()
        self._requests: deque[Request] = deque()
        self._awaited = 0  # iteration of the oldest request
        self._done: dict[tuple[int, int], Trajectories] = {}
        self._put: tuple[int, Any] | None = None  # newest version and the reference to its weights
        self._losses: Counter[tuple[int, int] | int] = Counter()  # since the last answer
        self.num_replaced = 0

    def submit(self, request: Request) -> None:
        """Put the weights into the object store, once a version, and queue the shards."""
        if self._put is None or self._put[0] != request.version:
            self._put = (request.version, ray.put(request.weights))
        if not self._requests:
            self._awaited = request.iteration
        self._requests.append(request)
        self._waiting.extend(
            _Task(request.iteration, shard, *self._put) for shard in range(request.num_shards)
        )
        self._receive(timeout=0.0)

    def results(self) -> Iterator[Trajectories]:
        """Yield the shards of the oldest request in order, as soon as each is there.

        Raises:
            RunFailed: If a worker's own code fails, or workers die faster than they answer.
        """
        request = self._requests.popleft()
        self._awaited = request.iteration
        for shard in range(request.num_shards):
            if time.monotonic() - self._polled > POLL_S:
                self._receive(timeout=0.0)  # keeps the workers busy with what was ordered next
            while (request.iteration, shard) not in self._done:
                self._receive(timeout=1.0)
            yield self._done.pop((request.iteration, shard))

    def close(self) -> None:
        """Stop the workers."""
        for slot in self._slots:
            ray.kill(slot.actor)
        self._slots.clear()

    def _filled(self) -> _Slot:
        """A slot with a new worker."""
        actor = self._start()
        slot = _Slot(actor, actor.__ray_ready__.remote(), node_ids())
        self._calls[slot.starting] = slot
        return slot

    def _start(self) -> Any:
        self._num_started += 1
        name = f"sft-rl/{self.run}/rollout-{self._num_started}"
        return start_actor(
            RolloutWorker,
            self._make_runner,
            self.config.num_threads,
            name if self.exports else None,
            name=name,
            num_cpus=self.config.num_cpus_per_worker,
            num_gpus=self.config.num_gpus_per_worker,
            strategy=STRATEGIES[self.config.placement],
            labels=self.config.labels,
        )

    def _dispatch(self) -> None:
        if not self._waiting:
            return
        loads = [(len(slot.calls), i) for i, slot in enumerate(self._slots) if not slot.starting]
        heapq.heapify(loads)
        while self._waiting and loads:
            load, i = loads[0]
            # What is drawn ahead is handed out whole: nobody is here while the learner computes.
            is_ahead = self._waiting[0].iteration > self._awaited
            if load >= MAX_IN_FLIGHT and not is_ahead:
                return
            heapq.heapreplace(loads, (load + 1, i))
            slot, task = self._slots[i], self._waiting.popleft()
            if not load:
                slot.last_sign_of_life = time.monotonic()
            call = slot.actor.collect.remote(task.iteration, task.shard, task.version, task.weights)
            slot.calls[call], self._calls[call] = task, slot

    def _receive(self, *, timeout: float) -> None:
        """Take the answers that are there within some seconds; find workers dead or hung."""
        calls = list(self._calls)
        ready = ray.wait(calls, num_returns=len(calls), timeout=0.0)[0] if calls else []
        if calls and not ready and timeout > 0.0:
            ready, _ = ray.wait(calls, num_returns=1, timeout=timeout)
        self._polled = time.monotonic()
        for call in ready:
            if call in self._calls:  # else its worker has been replaced
                self._take(self._calls[call], call)
        # Nobody's answer waits for us, so who is late is late by itself.
        for slot in () if ready else tuple(self._slots):
            if slot.is_hung(self.config.timeout_s):
                self._replace(slot, f"has not answered for {self.config.timeout_s:g} s")
            elif slot.starting:
                self._look_for_a_place(slot)
        self._dispatch()

    def _look_for_a_place(self, slot: _Slot) -> None:
        """Tell of a worker that has not started for long; without any other, give up in the end."""
        since = time.monotonic() - slot.last_sign_of_life
        if since > START_S and not slot.is_told_of:
            slot.is_told_of = True
            self.warn(
                f"a rollout worker has waited {START_S:g} s for a place on a node; those that have "
                "one do its work"
            )
        if since > ROOM_S and all(slot.starting for slot in self._slots):
            raise RunFailed(
                f"rollout: no worker has started for {ROOM_S:g} s; is there a node with room for "
                f"{self.config.num_cpus_per_worker:g} CPU and {self.config.num_gpus_per_worker:g} "
                "GPU?"
            )

    def _take(self, slot: _Slot, call: Any) -> None:
        try:
            answer = ray.get(call)
        except RayTaskError as error:
            raise _own_error(error.cause) from error
        except RayError as error:  # a dead worker or node, killed for memory, a full store or disk
            if getattr(error, "actor_init_failed", False):
                raise RunFailed(f"rollout: no worker could start: {last_line(error)}") from error
            died = isinstance(error, RayActorError | ObjectLostError)
            self._replace(slot, "died" if died else f"was lost ({type(error).__name__})")
            return
        del self._calls[call]
        slot.last_sign_of_life = time.monotonic()
        if call == slot.starting:
            slot.starting = None
            del self._losses[self._slots.index(slot)]
            return
        self._losses.clear()
        slot.is_new, task = False, slot.calls.pop(call)
        trajectories = Trajectories.from_numpy(answer)
        if trajectories.policy_version != task.version:
            raise RunFailed(
                f"rollout: a worker answered with weights {trajectories.policy_version}, asked "
                f"for {task.version}; its trajectories are refused"
            )
        self._done[task.iteration, task.shard] = trajectories

    def _replace(self, slot: _Slot, why: str) -> None:
        """Start a fresh worker in a slot and queue its unanswered shards first."""
        ray.kill(slot.actor)
        place = self._slots.index(slot)
        lost = [(task.iteration, task.shard) for task in slot.calls.values()]
        if slot.nodes <= node_ids():  # else it went with its node, which says nothing of it
            self._losses.update([place] if slot.starting else lost)
        if max(self._losses.values(), default=0) >= MAX_LOSSES:
            what = "before they had started" if slot.starting else "with the same shard"
            raise RunFailed(
                f"rollout: {MAX_LOSSES} workers in a row were lost {what}, the last "
                f"one {why}, and none answered in between; look at their memory, and at "
                "rollout.timeout_s"
            )
        self.warn(f"a rollout worker {why}; it is replaced, its shards are drawn again")
        self._waiting.extendleft(reversed(slot.calls.values()))
        for call in slot.calls:
            del self._calls[call]
        self._calls.pop(slot.starting, None)
        slot.calls.clear()
        self._slots[place] = self._filled()
        self.num_replaced += 1


def _own_error(error: Exception) -> UserError:
    """What a worker's own code raised, as one line."""
    if isinstance(error, UserError):
        return error
    return RunFailed(f"rollout: a worker failed: {type(error).__name__}: {last_line(error)}")
