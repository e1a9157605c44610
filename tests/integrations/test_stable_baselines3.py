"""Stable-Baselines3: its checker, its vector API, its PPO."""

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import VecMonitor

from envs import DenoisingVectorEnv
from envs.integrations.stable_baselines3 import StableBaselines3VecEnv
from examples.sb3_swiss_roll import make_model
from sft_rl.errors import UserError

pytestmark = pytest.mark.integrations


def make(tiny_settings: tuple[str, ...], **options: Any) -> StableBaselines3VecEnv:
    env = gymnasium.make_vec(
        "envs:sft_rl/Denoising-v0", preset="swiss_roll", settings=tiny_settings, **options
    )
    return StableBaselines3VecEnv(env)  # type: ignore[arg-type]


@pytest.mark.parametrize("action", ["next_latent", "noise", "epsilon"])
@pytest.mark.parametrize("observation", ["dict", "flat"])
def test_its_checker_has_nothing_to_say(
    tiny_settings: tuple[str, ...], action: str, observation: str
):
    """Actions are declared in [-1, 1] here, which it recommends."""
    env = gymnasium.make(
        "envs:sft_rl/Denoising-v0",
        preset="swiss_roll",
        settings=tiny_settings,
        action=action,
        action_bound=1.0,
        observation=observation,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


@pytest.mark.parametrize("observation", ["dict", "flat"])
def test_the_adapter_gives_the_envs_numbers(observation: str):
    def env() -> DenoisingVectorEnv:
        return DenoisingVectorEnv(
            num_envs=3, num_steps=2, shape=(2,), observation=observation, reward=lambda x: x[:, 0]
        )

    adapted, plain = StableBaselines3VecEnv(env()), env()
    adapted.seed(7)
    seen, expected = adapted.reset(), plain.reset(seed=7)[0]
    source = np.random.default_rng(0)
    for step in range(1, 6):
        if observation == "flat":
            np.testing.assert_array_equal(seen, expected)
        else:
            assert {k: v.tolist() for k, v in seen.items()} == {
                k: v.tolist() for k, v in expected.items()
            }
        actions = source.normal(size=(3, 2)).astype(np.float32)
        seen, rewards, ended, infos = adapted.step(actions)
        expected, paid, *_, last = plain.step(actions)
        np.testing.assert_array_equal(rewards, paid)
        assert ended.tolist() == [step % 2 == 0] * 3
        assert [("terminal_observation" in info) for info in infos] == ended.tolist()
        if ended.all():
            for i, info in enumerate(infos):
                final = info["terminal_observation"]
                if observation == "flat":
                    np.testing.assert_array_equal(final, last["final_obs"][i])
                    np.testing.assert_array_equal(final[:2], actions[i])
                else:
                    np.testing.assert_array_equal(final["latent"], actions[i])
                    assert final["step_index"] == 2


def test_torch_arrays_are_refused():
    env = DenoisingVectorEnv(num_envs=3, num_steps=2, shape=(2,), array="torch")
    with pytest.raises(UserError, match="array: Stable-Baselines3 takes 'numpy', got 'torch'"):
        StableBaselines3VecEnv(env)


@pytest.mark.parametrize(
    ("action", "observation", "policy"),
    [("noise", "flat", "MlpPolicy"), ("next_latent", "dict", "MultiInputPolicy")],
)
def test_its_ppo_learns_from_an_adversarial_reward(
    tiny_settings: tuple[str, ...], action: str, observation: str, policy: str
):
    env = VecMonitor(
        make(
            tiny_settings, num_envs=16, action=action, observation=observation, reward="adversarial"
        )
    )
    model = PPO(policy, env, n_steps=8, batch_size=64, n_epochs=2, seed=0, device="cpu")
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(16 * 8 * 3)
    after = list(model.policy.parameters())
    assert any(not torch.equal(b, a) for b, a in zip(before, after, strict=True))
    lengths = {episode["l"] for episode in model.ep_info_buffer}
    assert lengths == {4}
    assert np.isfinite([episode["r"] for episode in model.ep_info_buffer]).all()


def test_the_example_starts_at_the_pretrained_sampler(tiny_settings: tuple[str, ...]):
    """Its actions are standard normal, whatever it sees."""
    with torch.no_grad():
        model = make_model(seed=0, settings=tiny_settings)
        seen = torch.cat([torch.randn(5, 2), torch.rand(5, 1)], dim=1)
        distribution = model.policy.get_distribution(seen).distribution
    assert torch.equal(distribution.mean, torch.zeros(5, 2))
    assert torch.equal(distribution.stddev, torch.ones(5, 2))
