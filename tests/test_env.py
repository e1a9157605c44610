"""The MDP as Gymnasium sees it: scalar and vector, numpy and torch, the same numbers."""

import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import envs
from envs import AdversarialReward, DenoisingEnv, DenoisingVectorEnv
from sft_rl.build import build_networks
from sft_rl.critics import build_critic
from sft_rl.data import load_dataset
from sft_rl.errors import UserError
from sft_rl.networks import noise_network
from sft_rl.policy import DenoisingPolicy


def score(samples: torch.Tensor) -> torch.Tensor:
    return samples.square().sum(1)


@pytest.fixture
def policy(tiny_config: Any) -> DenoisingPolicy:
    torch.manual_seed(0)
    networks = build_networks(tiny_config(), noise_network(tiny_config(), (2,)), (2,))
    return networks.policy.requires_grad_(False)


@pytest.mark.parametrize("action", ["next_latent", "noise", "epsilon"])
@pytest.mark.parametrize("observation", ["dict", "flat"])
def test_row_i_is_the_scalar_env(policy: DenoisingPolicy, action: str, observation: str):
    options: dict[str, Any] = {
        "num_steps": 4,
        "shape": (2,),
        "reward": score,
        "action": action,
        "observation": observation,
        "policy": policy,
    }
    vector = DenoisingVectorEnv(num_envs=3, **options)
    scalars = [DenoisingEnv(**options) for _ in range(3)]

    def latent(seen: Any) -> np.ndarray:
        return seen[..., :2] if observation == "flat" else seen["latent"]

    batch, _ = vector.reset(seed=11)
    singles = [env.reset(seed=11 + i)[0] for i, env in enumerate(scalars)]
    source = np.random.default_rng(0)
    for step in range(12):  # three episodes
        rows = np.stack([latent(s) for s in singles])
        if action == "noise":  # a network's matrix products round differently by batch size
            np.testing.assert_allclose(latent(batch), rows, rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_array_equal(latent(batch), rows)
        actions = source.normal(size=(3, 2)).astype(np.float32)
        batch, rewards, ended, _, infos = vector.step(actions)
        results = [env.step(a) for env, a in zip(scalars, actions, strict=True)]
        np.testing.assert_allclose(rewards, [r[1] for r in results], rtol=1e-4)
        assert ended.tolist() == [r[2] for r in results] == [step % 4 == 3] * 3
        singles = [r[0] for r in results]
        if ended.all():
            np.testing.assert_allclose(
                latent(infos["final_obs"]), np.stack([latent(s) for s in singles]), rtol=1e-4
            )
            singles = [env.reset()[0] for env in scalars]


def test_the_pretrained_sampler_is_the_standard_normal_policy(policy: DenoisingPolicy):
    env = DenoisingVectorEnv(
        num_envs=5, num_steps=4, shape=(2,), action="noise", policy=policy, array="torch"
    )
    seen, _ = env.reset(seed=0)
    noise = torch.randn(4, 5, 2)
    x = seen["latent"]
    for k in range(4):
        x, _ = policy.act(x, torch.tensor(k), noise[k])
        seen, *_, infos = env.step(noise[k])
    torch.testing.assert_close(infos["final_obs"]["latent"], x)


def test_torch_arrays_are_the_numpy_ones_and_not_copies():
    numpy_env = DenoisingVectorEnv(num_envs=4, num_steps=2, shape=(2,))
    torch_env = DenoisingVectorEnv(num_envs=4, num_steps=2, shape=(2,), array="torch")
    a, b = numpy_env.reset(seed=1)[0], torch_env.reset(seed=1)[0]
    np.testing.assert_array_equal(a["latent"], b["latent"].numpy())
    action = torch.zeros(4, 2)
    assert torch_env.step(action)[0]["latent"].data_ptr() == action.data_ptr()


def test_autoreset_is_declared():
    env = DenoisingVectorEnv(num_envs=2, num_steps=3, shape=(2,))
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


@pytest.mark.parametrize("options", [{}, {"action": "noise", "observation": "flat"}])
def test_gymnasium_makes_it_and_its_checker_passes(tiny_settings: Any, options: dict[str, Any]):
    """One recommendation is not followed: actions are in units of the noise, not in [-1, 1]."""
    env = gymnasium.make(
        "envs:sft_rl/Denoising-v0",
        preset="swiss_roll",
        num_steps=3,
        settings=tiny_settings,
        render_mode="rgb_array",
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*we recommend using a symmetric and normal")
        check_env(env.unwrapped)
    vector = gymnasium.make_vec(
        "envs:sft_rl/Denoising-v0",
        num_envs=6,
        preset="swiss_roll",
        settings=tiny_settings,
        **options,
    )
    assert isinstance(vector.unwrapped, envs.DenoisingVectorEnv)
    seen, _ = vector.reset(seed=0)
    assert seen in vector.observation_space


def test_the_adversarial_reward_learns_and_goes_on_after_a_checkpoint(tiny_config: Any):
    config = tiny_config()
    data = load_dataset(config.data)
    fake = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)) + 3.0

    def make() -> AdversarialReward:
        torch.manual_seed(0)
        return AdversarialReward(build_critic(config, (2,)), data, batch_size=32, update_every=64)

    reward, resumed = make(), make()
    for _ in range(20):
        reward(fake)
    with torch.no_grad():
        gap = reward.critic(data.train[:500]).mean() - reward.critic(fake).mean()
    assert gap > 0
    resumed.load_state(reward.state())
    assert torch.equal(reward(fake), resumed(fake))


@pytest.mark.parametrize("rendered", [np.zeros((5, 2)), np.zeros((5, 3, 8, 8))])
def test_pictures(rendered: np.ndarray):
    env = DenoisingVectorEnv(
        num_envs=5, num_steps=2, shape=rendered.shape[1:], render_mode="rgb_array"
    )
    env.reset(seed=0)
    (picture,) = env.render() or ()
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.std() > 0


def test_bad_input_is_named(policy: DenoisingPolicy, tmp_path: Path):
    env = DenoisingEnv(num_steps=1, shape=(2,))
    with pytest.raises(UserError, match=r"call reset\(\)"):
        env.step(np.zeros(2))
    env.reset(seed=0)
    with pytest.raises(UserError, match=r"shape \(1, 3\) given, expected \(1, 2\)"):
        env.step(np.zeros(3))
    with pytest.raises(UserError, match="not finite"):
        env.step(np.array([0.0, np.nan]))
    env.step(np.zeros(2))
    with pytest.raises(UserError, match="ended"):
        env.step(np.zeros(2))
    with pytest.raises(UserError, match="did you mean 'noise'"):
        DenoisingEnv(num_steps=1, shape=(2,), action="noisy")
    with pytest.raises(UserError, match="moves a pretrained sampler"):
        DenoisingEnv(num_steps=1, shape=(2,), action="noise")
    with pytest.raises(UserError, match="exactly one of preset, run or policy"):
        envs.factory.env_arguments(preset="swiss_roll", policy=policy)
    with pytest.raises(UserError, match="'adversary' is unknown"):
        envs.factory.env_arguments(policy=policy, reward="adversary")
    with pytest.raises(UserError, match="holds no run"):
        envs.factory.env_arguments(run=tmp_path)
    bad = DenoisingEnv(num_steps=1, shape=(2,), reward=lambda x: x)
    bad.reset(seed=0)
    with pytest.raises(UserError, match="reward: returned shape"):
        bad.step(np.zeros(2))
