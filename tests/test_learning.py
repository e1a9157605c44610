"""The whole loop learns: a sampler of N(0, 1) is turned into one of another Gaussian."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from envs import DenoisingVectorEnv
from sft_rl.algorithms import Networks
from sft_rl.config import Config, ResolvedConfig
from sft_rl.data import Dataset, load_dataset
from sft_rl.diffusion.schedule import StepSchedule
from sft_rl.learning.learner import Learner, Optimisation
from sft_rl.learning.optim import Adam, RMSprop, update_average
from sft_rl.learning.team import Team
from sft_rl.learning.trainer import Trainer
from sft_rl.learning.validation import Validation
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.networks.mlp import TimeMLP
from sft_rl.policy import DenoisingPolicy
from sft_rl.rollout.runner import LocalCollector, RolloutRunner
from sft_rl.runs.folder import RunFolder
from sft_rl.runs.parts import algorithm_of, critic_of, value_of
from sft_rl.runs.resolve import resolve
from sft_rl.storage.checkpoint import parameters_sha256

TARGET_MEAN, TARGET_STD = 1.5, 0.5


class Silent:
    """An observer that shows nothing."""

    def phase(self, name: str) -> None: ...

    def progress(self, done: int, total: int, metrics: dict[str, float]) -> None: ...


def gaussian_config(
    folder: Path, *, seed: int = 0, num_iterations: int = 150, baseline: str = "look_ahead"
) -> ResolvedConfig:
    """A run on 5000 points of the target, held in a file; nothing about it is pretrained."""
    points = np.random.default_rng(7).normal(TARGET_MEAN, TARGET_STD, (5000, 1))
    np.save(folder / "points.npy", points)
    config = Config.model_validate(
        {
            "seed": seed,
            "data": {"path": str(folder / "points.npy"), "standardise": False},
            "sampler": {"num_steps": 3},
            "policy": {"learning_rate": 5e-3, "ema_decay": 0.9},
            "critic": {
                "width": 32,
                "depth": 2,
                "num_fourier": 0,
                "penalty_target": 0.0,
                "final_lr_factor": 0.1,
            },
            "value": {"width": 32, "num_fourier": 0},
            "sft_pg": {"baseline": baseline},
            "training": {
                "num_iterations": num_iterations,
                "batch_size": 256,
                "eval_every": 1000,
                "lr_decay": "cosine",
            },
            "rollout": {"num_workers": 0},
            "metrics": {"num_samples": 1000, "num_exact": 100, "num_projections": 1},
        }
    )
    return resolve(config)[0]


def standard_normal_policy() -> DenoisingPolicy:
    """A sampler whose every latent is N(0, 1): x_{k+1} = sqrt(1 - s^2) x_k + s noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = TimeMLP(1, 1, width=32, depth=2, embedding_dim=8, time_range=3.0)
    torch.nn.init.zeros_(network.output.weight)
    torch.nn.init.zeros_(network.output.bias)
    std = np.array([0.8, 0.6, 0.3])
    schedule = StepSchedule(
        timesteps=np.array([2.0, 1.0, 0.0]),
        coef_x=np.sqrt(1.0 - std**2),
        coef_output=np.ones(3),
        std=std,
        alpha_bar=np.ones(3),
    )
    return DenoisingPolicy(network, schedule, shape=(1,))


def fine_tune(config: ResolvedConfig, folder: Path) -> Learner:
    """Put the real parts together and run them."""
    data: Dataset = load_dataset(config.data)
    policy = standard_normal_policy()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        critic, value = critic_of(config), value_of(config)
    networks = Networks(policy, critic, value, pretrained=copy.deepcopy(policy))
    learner = Learner(
        networks,
        algorithm_of(config),
        data=data,
        training=config.training,
        optimisation=Optimisation(config.policy, config.critic, config.value),
        seed=config.seed,
    )
    env = DenoisingVectorEnv(
        num_envs=config.training.batch_size, num_steps=policy.num_steps, shape=(1,), array="torch"
    )
    runner = RolloutRunner(env, standard_normal_policy(), seed=config.seed, keep_expected=True)
    trainer = Trainer(
        learner,
        LocalCollector(runner, num_threads=1),
        validation=Validation(
            Evaluator(data, config.metrics), networks, num_scored=10, team=Team(), warn=print
        ),
        store=RunFolder.create(folder, config),
        observer=Silent(),
        training=config.training,
        shards_per_batch=config.rollout.shards_per_batch,
        num_warmup_steps=config.critic.num_warmup_steps,
        threads=1,
    )
    trainer.train()
    return learner


def draw(policy: DenoisingPolicy) -> torch.Tensor:
    return policy.sample(20_000, torch.Generator().manual_seed(0))


def test_the_sampler_starts_as_a_standard_normal():
    samples = draw(standard_normal_policy())
    assert samples.mean().item() == pytest.approx(0.0, abs=0.03)
    assert samples.std().item() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(
    "baseline", ["look_ahead", pytest.param("value", marks=pytest.mark.slow), "none"]
)
def test_a_gaussian_is_learned_in_seconds(tmp_path: Path, baseline: str):
    config = gaussian_config(tmp_path, baseline=baseline)
    samples = draw(fine_tune(config, tmp_path / "run").evaluated_policy)
    assert samples.mean().item() == pytest.approx(TARGET_MEAN, abs=0.1)
    assert samples.std().item() == pytest.approx(TARGET_STD, abs=0.1)


def test_the_same_seed_gives_the_same_weights_twice(tmp_path: Path):
    config = gaussian_config(tmp_path, num_iterations=5)
    first, second = (fine_tune(config, tmp_path / name) for name in ("first", "second"))
    for name in ("policy", "critic", "value"):
        ours, theirs = getattr(first.networks, name), getattr(second.networks, name)
        assert parameters_sha256(ours) == parameters_sha256(theirs)


def test_another_seed_gives_other_weights(tmp_path: Path):
    hashes = {
        parameters_sha256(
            fine_tune(
                gaussian_config(tmp_path, seed=seed, num_iterations=2), tmp_path / str(seed)
            ).networks.policy
        )
        for seed in (0, 1, 2)
    }
    assert len(hashes) == 3


@pytest.mark.parametrize(("ramp", "held"), [(1.0, 400.0), (9.0, 85.0)])
def test_the_ramp_sets_how_many_updates_the_average_holds(ramp: float, held: float):
    average, module = torch.nn.Linear(1, 400, bias=False), torch.nn.Linear(1, 400, bias=False)
    torch.nn.init.zeros_(average.weight)
    for step in range(400):  # parameter i is 1 after update i alone: the average is its weight
        module.weight.data = torch.eye(400)[:, step : step + 1]
        update_average(average, module, decay=0.9999, num_updates=step, ramp=ramp)
    weights = average.weight.detach()[:, 0]
    if ramp == 1.0:  # all alike, where it started among them
        assert torch.allclose(weights, torch.full((400,), 1 / 401), rtol=1e-4)
    assert float(weights.sum() ** 2 / (weights**2).sum()) == pytest.approx(held, rel=0.03)


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [(Adam, torch.optim.Adam, {"fused": True}), (RMSprop, torch.optim.RMSprop, {})],
)
def test_an_optimiser_is_that_of_torch_and_continues_from_its_state(ours, theirs, options):
    networks = [torch.nn.Linear(3, 2) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers = [
        kind(network.parameters(), lr=0.01, **options)
        for kind, network in zip((ours, theirs), networks, strict=True)
    ]
    for _ in range(4):
        x = torch.randn(5, 3)
        for network, optimizer in zip(networks, optimizers, strict=True):
            optimizer.zero_grad()
            network(x).square().sum().backward()
            optimizer.step()
        states = [optimizer.state_dict() for optimizer in optimizers]
        for optimizer, state in zip(optimizers, reversed(states), strict=True):
            optimizer.load_state_dict(copy.deepcopy(state))
    weights = [parameters_sha256(network) for network in networks]
    assert weights[0] == weights[1]
    assert isinstance(optimizers[0], theirs)
    again = copy.deepcopy(optimizers[0])
    assert type(again) is ours
