"""What rollout workers can suffer; run by test_workers.py where a Ray runs.

Writes a JSON object: the scenario's name and what came of it.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray._private.worker import global_worker
from real_cluster import wait_for
from users_ray import NUM_CPUS

from sft_rl.config import ResolvedConfig, RolloutConfig, Section, TermConfig
from sft_rl.config.files import load_config
from sft_rl.data import load_dataset
from sft_rl.distributed import collector as collecting
from sft_rl.distributed import scorers as scoring
from sft_rl.distributed.collector import RayCollector
from sft_rl.distributed.scorers import RayScorers
from sft_rl.errors import UserError
from sft_rl.jobs.build import build_runner
from sft_rl.jobs.clock import Clock
from sft_rl.jobs.console import ConsoleObserver
from sft_rl.jobs.fine_tuning import fine_tune
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.policy import to_arrays
from sft_rl.rollout.runner import LocalCollector, Request, RolloutRunner
from sft_rl.runs.folder import RunFolder
from sft_rl.runs.parts import full_step_network, measured_full_step
from sft_rl.runs.resolve import resolve
from sft_rl.types import Trajectories

NUM_SHARDS = 8
BATCH = 8
"""Samples that a scorer gets at once."""


class Unpunctual(RolloutRunner):
    """Answers after a while, so that shards come back in any order."""

    def collect(self, iteration: int, shard: int) -> Trajectories:
        time.sleep(random.SystemRandom().random() / 10)
        return super().collect(iteration, shard)


class Faulty(RolloutRunner):
    """Its own code fails."""

    def collect(self, iteration: int, shard: int) -> Trajectories:
        raise ArithmeticError("the env\nis broken")


class Forgetful(RolloutRunner):
    """Answers with the version before."""

    def collect(self, iteration: int, shard: int) -> Trajectories:
        trajectories = super().collect(iteration, shard)
        return replace(trajectories, policy_version=trajectories.policy_version - 1)


def make(kind: type[RolloutRunner], config: ResolvedConfig) -> RolloutRunner:
    runner = build_runner(config)
    return kind(runner.env, runner.policy, seed=config.seed)


def stillborn() -> RolloutRunner:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def faulty_start() -> RolloutRunner:
    raise ArithmeticError("no such env")


def request(config: ResolvedConfig, iteration: int) -> Request:
    weights = to_arrays(build_runner(config).policy)
    return Request(iteration, iteration + 5, weights, NUM_SHARDS)


def pid(collector: Any) -> int:
    """The process of a collector's worker that has a place."""
    slot = next(slot for slot in collector._slots if not slot.starting)
    return int(ray.get(slot.actor.__ray_call__.remote(lambda _: os.getpid())))


class Disturbed:
    """A collector whose shards are compared with those of no worker at all, iteration by iteration.

    Args:
        config: What the trajectories are drawn with.
        make_runner: What the workers run.
        rollout: Their settings.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        make_runner: Callable[[], RolloutRunner],
        **rollout: object,
    ) -> None:
        self.config = config
        self.alone = LocalCollector(build_runner(config), num_threads=1)
        self.warnings: list[str] = []
        options = RolloutConfig(**{"num_cpus_per_worker": 0.5, **rollout})
        self.collector = RayCollector(make_runner, options, warn=self.warnings.append)
        self.iteration = 0

    def draw(self) -> list[bool]:
        """Draw an iteration; tell of each shard whether it is the same."""
        order = request(self.config, self.iteration)
        self.iteration += 1
        self.collector.submit(order)
        self.alone.submit(order)
        return [
            torch.equal(ours.latents, theirs.latents)
            and torch.equal(ours.log_probs, theirs.log_probs)
            for ours, theirs in zip(self.collector.results(), self.alone.results(), strict=True)
        ]

    def lose(self, number: signal.Signals) -> dict[str, object]:
        """Draw while a worker gets a signal; tell what came of it."""
        known = self.collector.num_replaced, len(self.warnings)
        hit = pid(self.collector)
        os.kill(hit, number)
        same = self.draw()
        wait_for(lambda: not Path(f"/proc/{hit}").exists())
        return {
            "same": same,
            "replaced": self.collector.num_replaced - known[0],
            "warnings": self.warnings[known[1] :],
        }


def losses(config: ResolvedConfig) -> dict[str, object]:
    """Draw with workers in disorder; then one is killed, then one hangs.

    There is room for two of the three: the third gets a place when one is lost.
    """
    training = config.training.model_copy(update={"batch_size": 2048})  # for the traffic
    config = config.model_copy(update={"training": training})
    pool = Disturbed(
        config,
        partial(make, Unpunctual, config),
        num_workers=3,
        num_cpus_per_worker=NUM_CPUS / 2,  # nothing is free beside the hung one
        timeout_s=6.0,
    )
    try:
        return {
            "undisturbed": {"same": pool.draw()},
            "killed": pool.lose(signal.SIGKILL),
            "hung": pool.lose(signal.SIGSTOP),
            "traffic": traffic(pool),
            "ahead": ahead(pool),
            "waiting": waiting(pool),
        }
    finally:
        pool.collector.close()


def refused(
    config: ResolvedConfig, make_runner: Callable[[], RolloutRunner], **rollout: object
) -> dict[str, object]:
    """Draw with a worker that cannot; tell how that ends."""
    pool = Disturbed(config, make_runner, num_workers=1, **rollout)
    try:
        pool.draw()
    except UserError as error:
        return {
            "text": str(error),
            "exit_code": error.exit_code,
            "replaced": pool.collector.num_replaced,
        }
    finally:
        pool.collector.close()
    raise AssertionError("it was not refused")


def waiting(pool: Disturbed) -> list[str]:
    """What is told of the worker that has no place, where that is told at once."""
    known, patience = len(pool.warnings), collecting.START_S
    collecting.START_S = 0.0
    try:
        pool.draw()
    finally:
        collecting.START_S = patience
    return pool.warnings[known:]


def ahead(pool: Disturbed) -> dict[str, int]:
    """Order an iteration and the next one; count who has the next one's shards after the first."""
    collector = pool.collector
    for iteration in range(2):
        collector.submit(request(pool.config, iteration))
    for _ in collector.results():
        pass
    calls = sum(len(slot.calls) for slot in collector._slots)
    return {"handed out": calls + len(collector._done), "kept": len(collector._waiting)}


def traffic(pool: Disturbed) -> dict[str, int]:
    """Count what three iterations cost, the last two drawn with the same weights."""
    serializer = global_worker.get_serialization_context()
    counts = {"puts": 0, "answers": 0, "bytes": 0, "own_bytes": 0}
    put, get = ray.put, ray.get

    def counted_put(value: Any) -> Any:
        counts["puts"] += 1
        return put(value)

    def counted_get(call: Any) -> Any:
        answer = get(call)
        counts["answers"] += 1
        counts["bytes"] += serializer.serialize(answer).total_bytes
        return answer

    ray.put, ray.get = counted_put, counted_get
    try:
        for iteration in range(3):
            order = replace(request(pool.config, iteration), version=min(iteration, 1))
            pool.collector.submit(order)
            for shard in pool.collector.results():
                tensors = (shard.latents, shard.log_probs, shard.rewards)
                counts["own_bytes"] += sum(tensor.nbytes for tensor in tensors)
    finally:
        ray.put, ray.get = put, get
    return counts


def policy_sha256(config: ResolvedConfig, num_workers: int, lag: int = 0) -> str:
    """Fine-tune with some workers, whose weights may be some versions old."""
    rollout = config.rollout.model_copy(
        update={"num_workers": num_workers, "num_cpus_per_worker": 0.4}
    )
    training = config.training.model_copy(update={"max_offpolicy_steps": lag})
    config = config.model_copy(update={"rollout": rollout, "training": training})
    data = load_dataset(config.data)
    evaluator = Evaluator(data, config.metrics)
    observer = ConsoleObserver()
    observer.phase = observer.progress = lambda *_: None  # type: ignore[method-assign]
    network, _ = full_step_network(config, data)
    with tempfile.TemporaryDirectory() as folder:
        summary = fine_tune(
            network,
            lambda: measured_full_step(config, network, evaluator),
            store=RunFolder.create(Path(folder) / "run", config),
            evaluator=evaluator,
            clock=Clock(time.perf_counter(), observer),
        )
    return str(summary["policy_sha256"])


class Mortal:
    """A reward whose process dies at the first batch of training, and is as good as ever after."""

    class Options(Section):
        flag: str
        """A file that is there until then."""

    def __init__(self, options: Options) -> None:
        self.flag = Path(options.flag)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) == BATCH and self.flag.exists():  # evaluations end with fewer
            self.flag.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return x[:, 0]


def overlapped(settings: list[str], flag: Path) -> dict[str, object]:
    """Fine-tune an adapter with weights two versions old: all here; with a worker and two scorers.

    One of these dies.
    """
    found: dict[str, object] = {}
    for num, name, more in (
        (0, "here", ""),
        (1, "scorers", ", num_scorers: 2, num_cpus_per_scorer: 0.1"),
    ):
        term = f"use: 'worker_scenarios:Mortal', weight: 0.5, batch_size: {BATCH}{more}"
        own = [f"reward.terms=[critic, {{{term}}}]", f"options.flag={flag}", "reward.num_scored=60"]
        own += ["algorithm=examples.running_baseline:RunningBaseline", "policy.lora.rank=1"]
        config, _ = resolve(load_config("swiss_roll", [*settings, *own]))
        if more:
            flag.touch()
        found[name] = policy_sha256(config, num, lag=2)
    return {**found, "died": not flag.exists()}


def crowded() -> dict[str, object]:
    """Score where one of two scorers has a place; then where there is none for any."""
    found: dict[str, object] = {}
    for name, share in (("one has", 0.75), ("none has", 2.0)):
        term = TermConfig(
            use="a:b", num_scorers=2, num_cpus_per_scorer=share * NUM_CPUS, timeout_s=10.0
        )
        scorers = RayScorers(term, lambda device: lambda samples: samples[:, 0])
        scoring.ROOM_S = 900.0 if share < 1.0 else -9.0
        x = torch.arange(6.0).reshape(3, 2)
        try:
            found[name] = [scorers(x).tolist() for _ in range(3)]
        except UserError as error:
            found[name] = str(error)
        finally:
            scorers.close()
    return found


def main(out: str, settings: list[str]) -> None:
    config, _ = resolve(load_config("swiss_roll", settings))
    results: dict[str, object] = {}
    rounded = [*settings, "rollout.latent_dtype=bfloat16"]
    narrow, _ = resolve(load_config("swiss_roll", rounded))
    for num in (0, 2):
        results[f"sha256 {num}"] = policy_sha256(narrow, num)
    results["overlapped"] = overlapped(settings, Path(out).with_name("flag"))
    results["crowded"] = crowded()
    results |= losses(config)
    for name, make_runner in (
        ("faulty", partial(make, Faulty, config)),
        ("faulty start", faulty_start),
        ("stillborn", stillborn),
        ("forgetful", partial(make, Forgetful, config)),
    ):
        results[name] = refused(config, make_runner)
    collecting.ROOM_S = 1.0
    nowhere = {"num_cpus_per_worker": 2 * NUM_CPUS}
    results["nowhere"] = refused(config, partial(make, RolloutRunner, config), **nowhere)
    Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
