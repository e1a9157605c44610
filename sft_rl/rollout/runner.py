"""From an env and a policy to trajectories; and who draws them: the collectors' protocol."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from sft_rl.policy import DenoisingPolicy, Drawn, load_arrays
from sft_rl.rollout.cuda_graphs import GraphedChain
from sft_rl.seeding import derive_seed, generator, num_threads
from sft_rl.types import Trajectories

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Request:
    """An order for one iteration's trajectories.

    Attributes:
        iteration: Which iteration they are for; with the shard's number it fixes all noise.
        version: Number of the weights to draw them with.
        weights: The policy's weights, numpy.
        num_shards: How many shards, each a full batch of the vector env.
        num_unscored: How many of the first only the critic learns from: no reward scores them.
    """

    iteration: int
    version: int
    weights: Weights
    num_shards: int
    num_unscored: int = 0


class Collector(Protocol):
    """Draws trajectories, here or elsewhere."""

    def submit(self, request: Request) -> None:
        """Order trajectories; returns at once where they are drawn elsewhere."""

    def results(self) -> Iterator[Trajectories]:
        """Yield the shards of the oldest request not yet collected, in the shards' order."""

    def close(self) -> None:
        """Let go of everything."""


class RolloutRunner:
    """Steps a vector env with a policy: one shard is one batch of complete episodes.

    All noise of shard j of iteration i comes from generators made for (seed, i, j): a shard is
    the same wherever, whenever and however often it is drawn.

    Args:
        env: A vector env in torch (see ``envs.DenoisingVectorEnv``), same-step autoreset.
        policy: Its weights are replaced by those of each request.
        seed: The run's seed.
        latent_dtype: What latents are rounded to and kept in.
        keep_expected: Keep the final samples that the policy expects, for a look ahead.
        cuda_graphs: Draw all steps of a shard at one go, by a CUDA graph.
        group_size: Rows of the env that share their start noise and label; it divides them.
        branch_step: Step at which the rows of a group part, or ``"cycle"``: all in turn, or those
            of the policy's noisier ones that have noise.
        window: How many steps from the branch on are the policy's noisier ones.
    """

    def __init__(
        self,
        env: VectorEnv,
        policy: DenoisingPolicy,
        *,
        seed: int,
        latent_dtype: torch.dtype = torch.float32,
        keep_expected: bool = False,
        cuda_graphs: bool = False,
        group_size: int = 1,
        branch_step: int | str = 0,
        window: int = 0,
    ) -> None:
        self.env = env
        self.policy = policy
        self.seed = seed
        self.latent_dtype = latent_dtype
        self.keep_expected = keep_expected
        self.cuda_graphs = cuda_graphs
        self.group_size = group_size
        self.branch_step = branch_step
        self.window = window
        self._chain: GraphedChain | None = None
        self.version = -1

    def load(self, version: int, weights: Weights) -> None:
        """Take over numbered weights."""
        if version != self.version:
            load_arrays(self.policy, weights)
            self.version = version

    def collect(self, iteration: int, shard: int) -> Trajectories:
        """Draw one shard with the loaded weights."""
        seed, options = derive_seed(self.seed, "start", iteration, shard), None
        observation, _ = self.env.reset(seed=seed)
        if self.group_size > 1:
            shared = observation.keys() & {"latent", "label", "condition"}
            options = {
                name: self._for_all(observation[name][:: self.group_size]) for name in shared
            }
            observation, _ = self.env.reset(seed=seed, options=options)
        source = generator(self.seed, "actions", iteration, shard, device=self.policy.device)
        start = observation["latent"]
        labels = observation.get("label", observation.get("condition"))
        branch = self._branch_step(iteration + shard)
        draw = self._drawn_at_once if self.cuda_graphs else self._drawn
        latents, log_probs, expected = draw(start, source, labels, branch)
        parted = torch.full((len(start),), branch, device=start.device)
        grouped = self.group_size > 1
        taken = torch.tensor(self._steps(branch), device=start.device)[:, None]
        return Trajectories(
            latents,
            log_probs,
            start.new_empty(0, len(start)),  # rewards score what is drawn
            self.version,
            labels,
            self.group_size,
            parted if grouped else None,
            expected,
            taken.expand(-1, len(start)) if self.window else None,
        )

    def _branch_step(self, turn: int) -> int:
        """Step at which the groups of a shard part."""
        if self.branch_step != "cycle":
            return int(self.branch_step)
        noisier = self.policy.noisier
        return turn % (self.policy.num_steps if noisier is None else int((noisier[2] > 0).sum()))

    def _steps(self, branch: int) -> list[int]:
        """The policy's steps that a shard takes, the noisier ones in the window."""
        num_steps = self.policy.num_steps
        window = range(branch, branch + self.window)
        return [k + num_steps * (k in window) for k in range(num_steps)]

    def _for_all(self, heads: Tensor) -> Tensor:
        """What belongs to the first row of every group, for all its rows."""
        return heads.repeat_interleave(self.group_size, dim=0)

    def _drawn(
        self, start: Tensor, source: torch.Generator, labels: Tensor | None, branch: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Draw latents, log-probs and, if kept, expectations, step by step."""
        policy, num_steps = self.policy, self.policy.num_steps
        # Made outside inference mode: the learner differentiates through functions of them.
        latents = start.new_empty(num_steps + 1, *start.shape, dtype=self.latent_dtype)
        log_probs = start.new_empty(num_steps, len(start))
        expected = torch.empty_like(latents[1:]) if self.keep_expected else None
        noise = torch.empty_like(start)
        with torch.inference_mode():
            latents[0] = start
            for k, step in enumerate(self._steps(branch)):
                noise.normal_(generator=source)
                index, wide = torch.tensor(step, device=start.device), latents[k].to(start.dtype)
                together = k < branch  # a group's first row stands for all
                rows = slice(None, None, self.group_size if together else None)
                drawn = policy.act(
                    wide[rows],
                    index,
                    noise[rows],
                    None if labels is None else labels[rows],
                    rounded_to=self.latent_dtype,
                )
                if together:
                    drawn = Drawn(*(self._for_all(values) for values in drawn))
                latents[k + 1], log_probs[k] = drawn.action, drawn.log_prob
                if expected is not None:
                    expected[k] = drawn.expected
                self.env.step(drawn.action)
        return latents, log_probs, expected

    def _drawn_at_once(
        self, start: Tensor, source: torch.Generator, labels: Tensor | None, branch: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Draw all steps, then take them in the env, which checks them."""
        self._chain = self._chain or GraphedChain(
            self.policy,
            len(start),
            latent_dtype=self.latent_dtype,
            keep_expected=self.keep_expected,
        )
        latents, log_probs, expected = self._chain(start, source, labels)
        for action in latents[1:]:
            self.env.step(action.to(start.dtype))
        return latents, log_probs, expected


class LocalCollector:
    """Draws shards in this process, one after the other, when they are asked for."""

    def __init__(self, runner: RolloutRunner, *, num_threads: int) -> None:
        self.runner = runner
        self.num_threads = num_threads
        self._requests: list[Request] = []

    def submit(self, request: Request) -> None:
        """Remember the order, with a copy of the weights, which the learner goes on changing."""
        weights = {name: array.copy() for name, array in request.weights.items()}
        self._requests.append(replace(request, weights=weights))

    def results(self) -> Iterator[Trajectories]:
        """Yield the shards of the oldest request, drawing each as it is asked for."""
        request = self._requests.pop(0)
        self.runner.load(request.version, request.weights)
        for shard in range(request.num_shards):
            with num_threads(self.num_threads):
                trajectories = self.runner.collect(request.iteration, shard)
            yield trajectories

    def close(self) -> None:
        """Forget what was ordered."""
        self._requests.clear()
