"""What an iteration costs, counted: a guard that does not depend on the machine's speed."""

import gc
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from torch import nn

from sft_rl.algorithms import Networks
from sft_rl.algorithms.sft_pg import SFTPG
from sft_rl.config import ResolvedConfig
from sft_rl.critics import NetworkCritic
from sft_rl.data import load_dataset
from sft_rl.jobs.build import build_runner
from sft_rl.jobs.dry_run import dry_run
from sft_rl.learning.protocols import NoStore, Silent
from sft_rl.learning.team import Team
from sft_rl.learning.trainer import Trainer
from sft_rl.learning.validation import Validation
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.rollout.runner import LocalCollector, Request
from sft_rl.runs.parts import learner_of, network_of, networks_of
from sft_rl.types import Loss, Trajectories

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
        "policy": 1,  # the loss; the look ahead has what the rollouts kept
        # Real and generated together, the penalty, the rewards; then advantages, look ahead.
        "critic": 2 * 3 + 1 + 1,
        "value": 2,
    }


class Watching(NetworkCritic):
    """Counts the trajectories that are alive as it learns."""

    alive: ClassVar[list[int]] = []

    def loss(self, *args: Any) -> Loss:
        self.alive.append(num_alive())
        return super().loss(*args)


class WatchingAlgorithm(SFTPG):
    """Counts them as the policy learns."""

    alive: ClassVar[list[int]] = []

    def loss(self, batch: Any, networks: Networks) -> Loss:
        self.alive.append(num_alive())
        return super().loss(batch, networks)


def num_alive() -> int:
    """Trajectories whose latents are held by anybody; a tensor counts once."""
    held = {id(o.latents): o.latents.shape[1] for o in gc.get_objects() if type(o) is Trajectories}
    return sum(held.values())


def test_a_warmup_holds_no_more_batches_than_a_policy_step_needs(tiny_config: TinyConfig):
    """Of 2 + 12 batches those of the newest critic steps; then the joined ones alone."""
    config = tiny_config("training.n_critic=2", "critic.num_warmup_steps=12")
    data = load_dataset(config.data)
    networks = networks_of(config, network_of(config))
    networks.critic.__class__ = Watching
    learner = learner_of(config, networks, data)
    learner.algorithm = WatchingAlgorithm(config.sft_pg, config.training)
    trainer = Trainer(
        learner,
        LocalCollector(build_runner(config), num_threads=1),
        validation=Validation(
            Evaluator(data, config.metrics), networks, num_scored=10, team=Team(), warn=print
        ),
        store=NoStore(),
        observer=Silent(),
        training=config.training,
        shards_per_batch=1,
        num_warmup_steps=12,
        threads=1,
    )
    trainer.train()
    size = config.training.batch_size
    assert len(Watching.alive) == 12 + 3 * 2
    assert max(Watching.alive) == 2 * size
    assert set(WatchingAlgorithm.alive) == {2 * size}


def test_a_dry_run_counts_the_trajectories_that_are_held(tiny_config: TinyConfig):
    """And every copy of the policy: by default 4, one that draws here, versions before."""
    size, steps, dim = 4096, 100, 2
    big = (f"training.batch_size={size}", f"sampler.num_steps={steps}", "algorithm=pathwise")
    big += ("pathwise.num_last_steps=1", "pathwise.chains_per_update=1", "training.n_generator=1")

    def gib(*settings: str) -> dict[str, float]:
        needed = dry_run(tiny_config(*big, *settings))
        return {k: float(v.removesuffix(" GiB")) for k, v in needed.items() if k.startswith("mem")}

    batch = 4 * (steps + 1) * size * dim / 2**30
    one, many = gib("training.n_critic=1"), gib("training.n_critic=100")
    assert one["memory, trajectories"] == pytest.approx(batch, abs=0.006)
    assert many["memory, trajectories"] == pytest.approx(100 * batch, abs=0.006)
    joined = 0.5 + 200 * batch  # beside what the libraries take
    assert many["memory, all"] == pytest.approx(joined, abs=0.02)
    wide = ("model.width=4096", "model.depth=2")
    here, elsewhere = gib(*wide), gib(*wide, "rollout.num_workers=1")
    overlapping = gib(*wide, "algorithm=sft_pg", "training.max_offpolicy_steps=3")
    a_copy = elsewhere["memory, weights"] / 4
    assert here["memory, weights"] == pytest.approx(5 * a_copy, rel=0.02)
    assert overlapping["memory, weights"] == pytest.approx(8 * a_copy, rel=0.02)
    four = ("rollout.num_workers=1", "learner.launcher=ray_train", "learner.num_workers=4")
    split = gib(*wide, *four, "learner.strategy=fsdp")
    assert split["memory, weights"] == pytest.approx(a_copy, rel=0.02)
    assert split["memory, optimisers"] == pytest.approx(here["memory, optimisers"] / 4, abs=0.006)
    assert gib(*wide, *four)["memory, weights"] == elsewhere["memory, weights"]
