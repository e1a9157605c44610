"""TorchRL's Gym wrapper takes the scalar env and the batched one as they are."""

from typing import Any

import pytest
import torch
from torchrl.envs import GymEnv, GymWrapper, check_env_specs

from envs import DenoisingEnv, DenoisingVectorEnv

pytestmark = pytest.mark.integrations

OPTIONS: dict[str, Any] = {"num_steps": 3, "shape": (2,), "reward": lambda x: x[:, 0]}


@pytest.mark.parametrize("observation", ["dict", "flat"])
def test_scalar(observation: str):
    env = GymWrapper(DenoisingEnv(**OPTIONS, observation=observation))
    check_env_specs(env)
    played = env.rollout(10)
    assert played.shape == (3,)  # it stops where the episode ends
    assert played["next", "reward"].flatten().tolist() == [0.0, 0.0, played["action"][2, 0].item()]
    assert played["next", "terminated"].flatten().tolist() == [False, False, True]


def test_batched():
    env = GymWrapper(DenoisingVectorEnv(num_envs=4, **OPTIONS, observation="flat"))
    check_env_specs(env)
    played = env.rollout(7, break_when_any_done=False)
    assert played.shape == (4, 7)
    # The next observation of an action is its own, over the ends of episodes, too.
    torch.testing.assert_close(played["next", "observation"][..., :2], played["action"])
    assert played["next", "done"][0].flatten().tolist() == [False, False, True] * 2 + [False]
    assert played["observation"][0, :, 2].tolist() == pytest.approx([0, 1 / 3, 2 / 3] * 2 + [0])
    paid = torch.where(played["next", "done"][..., 0], played["action"][..., 0], 0.0)
    torch.testing.assert_close(played["next", "reward"][..., 0], paid)


def test_by_name(tiny_settings: tuple[str, ...]):
    env = GymEnv(
        "envs:sft_rl/Denoising-v0",
        preset="swiss_roll",
        settings=tiny_settings,
        action="noise",
        observation="flat",
        reward="adversarial",
    )
    check_env_specs(env)
    assert env.rollout(10)["next", "reward"].isfinite().all()
