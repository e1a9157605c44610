"""What the env pays: a run's critic, one it trains itself, a function."""

import pickle
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import envs
import sft_rl
from envs import AdversarialReward, DenoisingEnv, DenoisingVectorEnv
from sft_rl.cli import main
from sft_rl.data import load_dataset
from sft_rl.errors import UserError
from sft_rl.runs.folder import RunFolder
from sft_rl.runs.parts import critic_of


def test_the_adversarial_reward_learns_and_goes_on_after_a_checkpoint(tiny_config: Any):
    config = tiny_config()
    data = load_dataset(config.data)
    fake = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)) + 3.0

    def make() -> AdversarialReward:
        torch.manual_seed(0)
        return AdversarialReward(critic_of(config), data, batch_size=32, update_every=64)

    reward, resumed = make(), make()
    for _ in range(20):
        reward(fake)
    with torch.no_grad():
        gap = reward.critic(data.train[:500]).mean() - reward.critic(fake).mean()
    assert gap > 0
    resumed.load_state(reward.state())
    assert torch.equal(reward(fake), resumed(fake))


def test_the_adversarial_reward_learns_in_whatever_mode_the_env_is_stepped(tiny_config: Any):
    config = tiny_config()
    samples = torch.randn(64, 2)
    rewards = []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        torch.manual_seed(0)
        reward = AdversarialReward(critic_of(config), load_dataset(config.data))
        with mode():
            rewards.append([reward(samples) for _ in range(8)][-1].clone())
    assert not torch.equal(rewards[0], reward(samples))
    for other in rewards[1:]:
        assert torch.equal(rewards[0], other)


@pytest.mark.parametrize(
    ("setting", "options", "norm"),
    [
        ("critic.regulariser=spectral_norm", {}, True),
        ("critic.regulariser=weight_clip", {"batch_size": 16, "update_every": 5}, False),
        ("critic.objective=mmd", {"batch_size": 16, "update_every": 5}, False),
    ],
)
def test_critic_and_rates_of_the_adversarial_reward_are_settings(
    make_options: dict[str, Any], setting: str, options: dict[str, Any], norm: bool
):
    make_options["settings"] = (*make_options["settings"], setting)

    def make() -> AdversarialReward:
        env = gymnasium.make_vec(
            **make_options, num_envs=5, reward="adversarial", reward_options=options
        )
        reward = env.unwrapped.process.reward  # type: ignore[attr-defined]
        assert isinstance(reward, AdversarialReward)
        return reward

    reward, resumed = make(), make()
    assert reward.batch_size == options.get("batch_size", 32)  # 32 is the tiny training.batch_size
    before = {name: value.clone() for name, value in reward.critic.state_dict().items()}
    samples = torch.randn(5, 2)
    for _ in range(3):
        reward(samples)
    changed = any(not torch.equal(before[k], v) for k, v in reward.critic.state_dict().items())
    assert changed is (options != {})  # by an update that was due; to score changes nothing
    assert any("parametrizations" in name for name in before) is norm
    if "weight_clip" in setting:
        bound = max(p.abs().max().item() for p in reward.critic.parameters())
        assert bound <= 0.05 + 1e-7
    resumed.load_state(reward.state())
    assert torch.equal(reward(samples), resumed(samples))


def test_a_runs_sampler_and_its_frozen_critic(tmp_path: Path, tiny_settings: tuple[str, ...]):
    out = tmp_path / "run"
    assert main(["train", "swiss_roll", *tiny_settings, "--out", str(out)]) == 0
    env = gymnasium.make_vec(
        "envs:sft_rl/Denoising-v0", num_envs=7, run=out, action="noise", reward="critic"
    )
    store = RunFolder.open(out)
    policy, tensors = store.result()
    critic = critic_of(store.config)
    critic.load_state_dict(tensors["critic"])
    x = torch.from_numpy(env.reset(seed=0)[0]["latent"])
    env = pickle.loads(pickle.dumps(env))  # noqa: S301 (our own)
    for k, noise in enumerate(torch.randn(4, 7, 2)):
        x, *_ = policy.act(x, torch.tensor(k), noise)
        _, rewards, *_, infos = env.step(noise.numpy())
    np.testing.assert_allclose(infos["final_obs"]["latent"], x.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rewards, critic(x).detach().numpy(), rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="num_steps and settings go with a preset"):
        envs.factory.env_arguments(run=out, num_steps=3)


@pytest.mark.parametrize(
    ("reward", "message"),
    [(lambda x: x, "reward: 'reward' returned shape"), (lambda x: x[:, 0] / 0.0, "not finite")],
)
def test_a_callable_reward_is_checked(reward: Any, message: str):
    for env in (
        DenoisingEnv(num_steps=1, shape=(2,), reward=reward),
        DenoisingVectorEnv(num_envs=1, num_steps=1, shape=(2,), reward=reward),
    ):
        env.reset(seed=0)
        with pytest.raises(UserError, match=message):
            env.step(np.ones(env.action_space.shape))


class Slope(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[:, 0]


@pytest.mark.parametrize("reward", [Slope(), lambda x: x[:, 0].numpy()])
def test_rewards_leak_no_gradient(reward: Any):
    env = DenoisingVectorEnv(num_envs=3, num_steps=1, shape=(2,), reward=reward, array="torch")
    env.reset(seed=0)
    _, paid, *_ = env.step(torch.ones(3, 2, requires_grad=True))
    assert paid.shape == (3,)
    assert not paid.requires_grad


def test_a_mix_beside_a_critic_that_learns(make_options: dict[str, Any]):
    """The env pays the weighted sum; options go to the adversarial term."""

    def in_units(points: np.ndarray) -> np.ndarray:
        return points[:, 0]

    terms = ["adversarial", {"use": sft_rl.reward(wants="numpy")(in_units), "weight": 0.5}]
    options = {"batch_size": 16, "update_every": 5}
    env = gymnasium.make_vec(**make_options, num_envs=5, reward=terms, reward_options=options)
    mixed = env.unwrapped.process.reward  # type: ignore[attr-defined]
    critic = mixed.objective.terms[0].score.score.function
    assert isinstance(critic, AdversarialReward)
    assert critic.batch_size == 16
    env.reset(seed=0)
    for _ in range(4):
        _, paid, *_, infos = env.step(np.ones((5, 2), np.float32))
    units = critic.data.units
    final = torch.from_numpy(infos["final_obs"]["latent"])
    with torch.no_grad():
        known = critic.critic(*critic._remembered())
        learned = (critic.critic(final) - known.mean()) / (known.std() + 1e-8)
    expected = learned.numpy() + 0.5 * units.to_data(final)[:, 0]
    np.testing.assert_allclose(paid, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (["adversary"], "'adversary' is unknown"),
        (["adversarial", "adversarial"], "two are called 'adversarial'"),
        (["critic", lambda x: x[:, 0]], "give run=FOLDER"),
        ([{"use": lambda x: x[:, 0], "weight": float("nan")}], "weight: .* finite"),
        ("nowhere:f", "cannot import 'nowhere'"),
    ],
)
def test_a_mix_that_cannot_work_is_one_line(
    make_options: dict[str, Any], reward: Any, message: str
):
    with pytest.raises(UserError, match=message) as error:
        gymnasium.make(**make_options, reward=reward)
    assert "\n" not in str(error.value)
