"""Rewards scored by Ray actors of their own."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayTaskError
from torch import Tensor

from sft_rl.config import TermConfig
from sft_rl.distributed.actors import start_actor
from sft_rl.distributed.nodes import node_ids
from sft_rl.distributed.secrets import receive_secrets
from sft_rl.errors import RunFailed, UserError, last_line
from sft_rl.rewards import Reward

MAX_LOSSES = 3
"""Scorers that a batch may be lost on in a row, no node leaving."""

ROOM_S = 900.0
"""Seconds that a batch waits for a scorer, beside what others' may take: one that is new has to be
placed, and to load its model."""


class Scorer:
    """Scores batches in a process of its own; holds no state that matters."""

    def __init__(self, make_reward: list[Any], module_path: list[str], device: str) -> None:
        torch.set_num_threads(1)
        receive_secrets()
        sys.path.extend(path for path in module_path if path not in sys.path)
        (reference,) = make_reward  # in a list, so that it is read after the line before
        self.reward: Reward = ray.get(reference)(device=device)

    def score(self, samples: np.ndarray, *labels: np.ndarray) -> np.ndarray:
        """Score samples in model units (B, *shape), shape (B,)."""
        scores: np.ndarray = self.reward(*map(torch.tensor, (samples, *labels))).cpu().numpy()
        return scores


@dataclass(frozen=True, eq=False)
class _Placed:
    """A scorer.

    Attributes:
        actor: It.
        ready: The call that it answers once it has a place and its model.
        nodes: The nodes that there were when it was asked for.
    """

    actor: Any
    ready: Any
    nodes: frozenset[str]


class RayScorers:
    """The scorers of one term; any free one takes a batch, which is the same by all of them.

    They start with the first batch. A scorer that dies or takes too long is replaced, and its batch
    scored again, by those that are there: where nodes leave, its successor may wait for a place.
    Several threads may call.

    Args:
        term: How many, and what each may use.
        make_reward: Makes the reward in an actor, on its `device`.
        run: The run's name, which is in those of the scorers.
        warn: Is told when a scorer is replaced.
    """

    def __init__(
        self,
        term: TermConfig,
        make_reward: Callable[..., Reward],
        *,
        run: str = "run",
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.run = run
        self._num_started = 0
        self.term = term
        self.make_reward = make_reward
        self.warn = warn
        self.actors: list[Any] = []
        self._free: SimpleQueue[_Placed] = SimpleQueue()
        self._starting = threading.Lock()

    def __call__(self, x: Tensor, *labels: Tensor) -> Tensor:
        """Score samples in model units (B, *shape), shape (B,).

        Raises:
            RunFailed: If the reward fails, scorers are lost with the same batch again and again, or
                there is no room for any.
        """
        with self._starting:
            if not self.actors:
                for _ in range(self.term.num_scorers):
                    self._start()
        batch = ray.put(x.cpu().numpy())
        others = [y.cpu().numpy() for y in labels]
        losses = 0
        while losses < MAX_LOSSES:
            scorer = self._next()
            try:
                ray.get(scorer.ready)
                call = scorer.actor.score.remote(batch, *others)
                scores = ray.get(call, timeout=self.term.timeout_s)
            except RayTaskError as error:
                self._free.put(scorer)
                raise self._own_error(error.cause) from error
            except (RayActorError, ObjectLostError, GetTimeoutError) as error:
                if getattr(error, "actor_init_failed", False):
                    raise self._own_error(getattr(error, "cause", None) or error) from error
                self._replace(
                    scorer, "took too long" if isinstance(error, GetTimeoutError) else "died"
                )
                losses += scorer.nodes <= node_ids()  # else it went with its node
                continue
            self._free.put(scorer)
            return torch.tensor(scores, device=x.device)
        raise RunFailed(
            f"reward: {self.term.name!r}: {MAX_LOSSES} scorers in a row were lost with the same "
            "batch; look at their memory, and at reward.terms.timeout_s"
        )

    def close(self) -> None:
        """Stop the scorers."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors.clear()

    def _start(self) -> None:
        term = self.term
        self._num_started += 1
        actor = start_actor(
            Scorer,
            [ray.put(self.make_reward)],
            [os.getcwd(), *filter(None, sys.path)],
            "cuda" if term.num_gpus_per_scorer else "cpu",
            name=f"sft-rl/{self.run}/{term.name}-{self._num_started}",
            num_cpus=term.num_cpus_per_scorer,
            num_gpus=term.num_gpus_per_scorer,
            strategy="SPREAD",
            labels=term.labels,
        )
        self.actors.append(actor)
        scorer = _Placed(actor, actor.__ray_ready__.remote(), node_ids())
        scorer.ready.future().add_done_callback(lambda _: self._free.put(scorer))

    def _next(self) -> _Placed:
        """A free scorer that has a place; or had, if it died before it had its model."""
        try:
            return self._free.get(timeout=ROOM_S + self.term.timeout_s)
        except Empty:
            term = self.term
            raise RunFailed(
                f"reward: {term.name!r}: no scorer has been free for {ROOM_S:g} s; is there a node "
                f"with room for {term.num_cpus_per_scorer:g} CPU and {term.num_gpus_per_scorer:g} "
                "GPU, and how long does one take to load?"
            ) from None

    def _replace(self, scorer: _Placed, why: str) -> None:
        self.warn(f"a scorer of {self.term.name!r} {why}; it is replaced, its batch scored again")
        with self._starting:
            ray.kill(scorer.actor)
            self.actors.remove(scorer.actor)
            self._start()

    def _own_error(self, error: Exception) -> UserError:
        """What a scorer's own code raised, as one line."""
        if isinstance(error, UserError):
            return error
        kind = type(error).__name__
        return RunFailed(f"reward: {self.term.name!r}: a scorer failed: {kind}: {last_line(error)}")


def start_scorers(run: str, warn: Callable[[str], None]) -> Callable[..., RayScorers]:
    """What starts the scorers of a term of a run, and tells `warn` of those that are replaced."""
    return partial(RayScorers, run=run, warn=warn)
