"""What an iteration costs, counted: a guard that does not depend on the machine's speed."""

from collections import Counter
from collections.abc import Callable

from torch import nn

from sft_rl.config import ResolvedConfig
from sft_rl.data import load_dataset
from sft_rl.jobs.build import build_runner
from sft_rl.rollout.runner import LocalCollector, Request
from sft_rl.runs.parts import learner_of, network_of, networks_of
from sft_rl.types import Trajectories

TinyConfig = Callable[..., ResolvedConfig]


def counted(calls: Counter[str], name: str, module: nn.Module) -> None:
    module.register_forward_hook(lambda *_: calls.update([name]))


def test_forward_passes_of_an_iteration(tiny_config: TinyConfig):
    """The whole (T, B) grid goes through a network at once; only rollouts walk step by step."""
    config = tiny_config("training.n_critic=2", "rollout.shards_per_batch=2")
    data = load_dataset(config.data)
    networks = networks_of(config, network_of(config))
    learner = learner_of(config, networks, data)
    runner = build_runner(config)
    collector = LocalCollector(runner, num_threads=1)
    calls: Counter[str] = Counter()
    counted(calls, "rollout policy", runner.policy.network)
    counted(calls, "policy", networks.policy.network)
    counted(calls, "critic", networks.critic.network)
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
