"""What an iteration costs, counted: a guard that does not depend on the machine's speed."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from sft_rl.algorithms import build_algorithm
from sft_rl.build import build_networks, build_runner
from sft_rl.config import Config
from sft_rl.data import load_dataset
from sft_rl.learner import Learner
from sft_rl.networks import noise_network
from sft_rl.policy import to_arrays
from sft_rl.rollout import LocalCollector, Request
from sft_rl.types import Trajectories

TinyConfig = Callable[..., Config]


def counted(calls: Counter[str], name: str, module: nn.Module) -> None:
    module.register_forward_hook(lambda *_: calls.update([name]))


def test_forward_passes_of_an_iteration(tiny_config: TinyConfig):
    """The whole (T, B) grid goes through a network at once; only rollouts walk step by step."""
    config = tiny_config("training.n_critic=2", "rollout.shards_per_batch=2")
    data = load_dataset(config.data)
    networks = build_networks(config, noise_network(config, data.shape), data.shape)
    learner = Learner(networks, build_algorithm(config), data=data, config=config)
    runner = build_runner(config, data.shape)
    collector = LocalCollector(runner, num_threads=1)
    calls: Counter[str] = Counter()
    counted(calls, "rollout policy", runner.policy.network)
    counted(calls, "policy", networks.policy.network)
    counted(calls, "critic", networks.critic)
    counted(calls, "value", networks.value)
    collector.submit(Request(0, learner.version, learner.weights(), num_shards=4))
    shards = list(collector.results())
    batches = [Trajectories.concatenate(shards[:2]), Trajectories.concatenate(shards[2:])]
    for update, batch in enumerate(batches):
        scores, _ = learner.update_critic(batch.final, 0, update)
        learner.update_value(batch, scores)
    learner.update_policy(Trajectories.concatenate(batches), 0)
    assert calls == {
        "rollout policy": 4 * config.sampler.num_steps,
        "policy": 1,
        # Real and generated together, the penalty, the rewards; then the advantages.
        "critic": 2 * 3 + 1,
        "value": 2 + 1,
    }


@pytest.mark.ray
def test_puts_calls_and_bytes_of_an_iteration(
    tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
):
    """One put a version, one call a shard, and little more than the trajectories travels."""
    from sft_rl.distributed.session import RaySession

    config = tiny_config(
        "training.batch_size=512",
        "rollout.num_workers=2",
        "rollout.num_cpus_per_worker=0.5",
        "rollout.shards_per_batch=2",
    )
    shape = load_dataset(config.data).shape
    weights = to_arrays(build_runner(config, shape).policy)
    with RaySession(config.ray, config.rollout) as session:
        session.wait()
        import ray
        from ray._private.worker import global_worker

        from sft_rl.distributed.collector import RayCollector

        collector = RayCollector(partial(build_runner, config, shape), config.rollout)
        calls: Counter[str] = Counter()
        put, get = ray.put, ray.get

        def counted_put(value: Any) -> Any:
            calls["puts"] += 1
            return put(value)

        def counted_get(call: Any) -> Any:
            answer = get(call)
            calls["answers"] += 1
            calls["bytes"] += (
                global_worker.get_serialization_context().serialize(answer).total_bytes
            )
            return answer

        monkeypatch.setattr(ray, "put", counted_put)
        monkeypatch.setattr(ray, "get", counted_get)
        for iteration in range(3):
            version = min(iteration, 1)  # the last two are drawn with the same weights
            collector.submit(Request(iteration, version, weights, num_shards=4))
            own = sum(_bytes(shard) for shard in collector.results())
        assert calls["puts"] == 2
        assert calls["answers"] == 3 * 4
        assert calls["bytes"] <= 1.05 * 3 * own
        monkeypatch.undo()
        collector.close()


def _bytes(trajectories: Trajectories) -> int:
    tensors: tuple[torch.Tensor, ...] = (
        trajectories.latents,
        trajectories.log_probs,
        trajectories.rewards,
    )
    return sum(tensor.nbytes for tensor in tensors)
