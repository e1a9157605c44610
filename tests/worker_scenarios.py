"""What rollout workers can suffer, on one Ray; run by test_workers.py in a process of its own.

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

import torch

from sft_rl.config import RayConfig, ResolvedConfig, RolloutConfig
from sft_rl.config.files import load_config
from sft_rl.data import load_dataset
from sft_rl.distributed.session import RaySession
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

SHAPE = (2,)
NUM_SHARDS = 8


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


def pids(collector: Any) -> list[int]:
    """Processes of a collector's workers; returns when all have started."""
    import ray

    calls = [slot.actor.__ray_call__.remote(lambda _: os.getpid()) for slot in collector._slots]
    return list(ray.get(calls))


def collect(
    config: ResolvedConfig,
    make_runner: Callable[[], RolloutRunner],
    *,
    signal_number: int | None = None,
    **rollout: object,
) -> dict[str, object]:
    """Draw two iterations and compare them with those of no worker at all; disturb the second."""
    from sft_rl.distributed.collector import RayCollector  # Ray reads the environment then

    alone = LocalCollector(build_runner(config), num_threads=1)
    warnings: list[str] = []
    options = RolloutConfig(**{"num_cpus_per_worker": 0.5, **rollout})
    collector = RayCollector(make_runner, options, warn=warnings.append)
    hit = []
    same, error = [], None
    try:
        for iteration in range(2):
            order = request(config, iteration)
            if iteration and signal_number:
                hit = pids(collector)[:1]
                os.kill(hit[0], signal_number)
            collector.submit(order)
            alone.submit(order)
            for ours, theirs in zip(collector.results(), alone.results(), strict=True):
                same.append(
                    torch.equal(ours.latents, theirs.latents)
                    and torch.equal(ours.log_probs, theirs.log_probs)
                )
    except UserError as refused:
        error = {"text": str(refused), "exit_code": refused.exit_code}
    finally:
        collector.close()
    deadline = time.monotonic() + 300.0
    while (left := [p for p in hit if Path(f"/proc/{p}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return {
        "same": same,
        "error": error,
        "replaced": collector.num_replaced,
        "warnings": warnings,
        "left": left,
    }


def ahead(config: ResolvedConfig) -> dict[str, int]:
    """Order an iteration and the next one; count who has the next one's shards after the first."""
    from sft_rl.distributed.collector import RayCollector

    options = RolloutConfig(num_workers=1, num_cpus_per_worker=0.5)
    collector = RayCollector(partial(build_runner, config), options)
    try:
        for iteration in range(2):
            collector.submit(request(config, iteration))
        for _ in collector.results():
            pass
        calls = sum(len(slot.calls) for slot in collector._slots)
        return {"handed out": calls + len(collector._done), "kept": len(collector._waiting)}
    finally:
        collector.close()


def traffic(config: ResolvedConfig) -> dict[str, int]:
    """Count what three iterations cost, the last two drawn with the same weights."""
    import ray
    from ray._private.worker import global_worker

    from sft_rl.distributed.collector import RayCollector

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

    training = config.training.model_copy(update={"batch_size": 2048})
    config = config.model_copy(update={"training": training})
    options = RolloutConfig(num_workers=2, num_cpus_per_worker=0.5)
    collector = RayCollector(partial(build_runner, config), options)
    ray.put, ray.get = counted_put, counted_get
    try:
        for iteration in range(3):
            order = replace(request(config, iteration), version=min(iteration, 1))
            collector.submit(order)
            for shard in collector.results():
                tensors = (shard.latents, shard.log_probs, shard.rewards)
                counts["own_bytes"] += sum(tensor.nbytes for tensor in tensors)
    finally:
        ray.put, ray.get = put, get
        collector.close()
    return counts


def policy_sha256(config: ResolvedConfig, num_workers: int, lag: int = 0) -> str:
    """Fine-tune with some workers, whose weights may be a version old."""
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


def main(out: str, settings: list[str]) -> None:
    config, _ = resolve(load_config("swiss_roll", settings))
    usual = partial(build_runner, config)
    results: dict[str, object] = {}
    with RaySession(RayConfig(), RolloutConfig()) as session:
        session.wait()
        rounded = [*settings, "rollout.latent_dtype=bfloat16"]
        narrow, _ = resolve(load_config("swiss_roll", rounded))
        for num in (0, 3):
            results[f"sha256 {num}"] = policy_sha256(narrow, num)
        for num in (0, 1):
            results[f"sha256 {num}, overlapped"] = policy_sha256(config, num, lag=1)
        unpunctual = partial(make, Unpunctual, config)
        results["killed"] = collect(config, unpunctual, num_workers=2, signal_number=signal.SIGKILL)
        results["hung"] = collect(
            config,
            usual,
            num_workers=2,
            num_cpus_per_worker=1.0,  # nothing is free beside the hung one
            timeout_s=6.0,
            signal_number=signal.SIGSTOP,
        )
        results["traffic"] = traffic(config)
        results["ahead"] = ahead(config)
        for name, make_runner in (
            ("faulty", partial(make, Faulty, config)),
            ("faulty start", faulty_start),
            ("stillborn", stillborn),
            ("forgetful", partial(make, Forgetful, config)),
        ):
            results[name] = collect(config, make_runner, num_workers=1)
    Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
