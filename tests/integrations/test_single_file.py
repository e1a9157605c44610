"""A plain PPO loop in one file, with Gymnasium's usual vector wrappers."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import wrappers
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import ClipAction, NormalizeObservation, RecordEpisodeStatistics

from envs import DenoisingEnv, DenoisingVectorEnv
from envs.wrappers import NextStepAutoreset
from examples.ppo_single_file import Agent, train
from sft_rl.errors import UserError

pytestmark = pytest.mark.integrations


def make(num_steps: int = 2) -> DenoisingVectorEnv:
    return DenoisingVectorEnv(
        num_envs=3,
        num_steps=num_steps,
        shape=(2,),
        action="next_latent",
        action_bound=2.0,
        observation="flat",
        reward=lambda x: x[:, 0],
    )


def test_the_usual_wrappers_go_around_it():
    env = NormalizeObservation(ClipAction(RecordEpisodeStatistics(NextStepAutoreset(make()))))
    seen, _ = env.reset(seed=0)
    assert seen.shape == (3, 3)
    for step in range(1, 8):
        seen, rewards, ended, _, infos = env.step(np.full((3, 2), 5.0, np.float32))
        assert np.isfinite(seen).all()
        assert ended.tolist() == [step % 3 == 2] * 3
        if ended.all():
            assert infos["episode"]["r"].tolist() == rewards.tolist() == [2.0] * 3  # clipped
            assert infos["episode"]["l"].tolist() == [2] * 3


def test_cleanrls_own_stack_of_scalar_envs_counts_episodes():
    """The wrappers of its ppo_continuous_action.py, in their order."""

    def thunk() -> gymnasium.Env[np.ndarray, np.ndarray]:
        env = DenoisingEnv(num_steps=2, shape=(2,), action_bound=2.0, reward=lambda x: x[:, 0])
        env = wrappers.RecordEpisodeStatistics(wrappers.FlattenObservation(env))
        env = wrappers.NormalizeObservation(wrappers.ClipAction(env))
        bounded = wrappers.TransformObservation(
            env, lambda seen: np.clip(seen, -10, 10), env.observation_space
        )
        paid = wrappers.NormalizeReward(bounded, gamma=0.99)
        return wrappers.TransformReward(paid, lambda reward: np.clip(reward, -10, 10))

    env = SyncVectorEnv([thunk] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    env.reset(seed=0)
    for step in range(1, 7):
        *_, infos = env.step(np.full((3, 2), 5.0, np.float32))
        assert ("final_info" in infos) == (step % 2 == 0)
        if "final_info" in infos:
            assert infos["final_info"]["episode"]["r"].tolist() == [2.0] * 3  # clipped
            assert infos["final_info"]["episode"]["l"].tolist() == [2] * 3


def test_the_next_step_starts_the_next_episodes():
    plain, wrapped = make(), NextStepAutoreset(make())
    assert wrapped.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert make().metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    expected, seen = plain.reset(seed=3)[0], wrapped.reset(seed=3)[0]
    for step in range(6):
        np.testing.assert_array_equal(seen, expected)
        actions = np.full((3, 2), float(step), np.float32)
        expected, paid, ends, _, infos = plain.step(actions)
        seen, rewards, ended, _, _ = wrapped.step(actions)
        np.testing.assert_array_equal(rewards, paid)
        np.testing.assert_array_equal(ended, ends)
        if ends.all():
            np.testing.assert_array_equal(seen, infos["final_obs"])
            seen, rewards, ended, truncated, _ = wrapped.step(np.full((3, 2), np.nan))
            assert not (rewards.any() or ended.any() or truncated.any())
    with pytest.raises(UserError, match="expected same-step autoreset"):
        NextStepAutoreset(wrapped)


def test_the_loop_starts_at_the_sampler_and_learns(tiny_settings: tuple[str, ...]):
    settings = [*tiny_settings, "metrics.num_samples=200"]
    result = train(seed=0, iterations=2, settings=settings)
    assert np.isfinite([result["before"], result["after"]]).all()
    assert result["before"] != result["after"]
    actions, log_prob = Agent(3, 2).act(torch.zeros(4000, 3))
    torch.testing.assert_close(log_prob, -0.5 * (actions**2).sum(1) - np.log(2 * np.pi))
