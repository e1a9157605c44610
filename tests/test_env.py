"""The MDP as Gymnasium sees it: scalar and vector, numpy and torch, the same numbers."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

import envs
from envs import DenoisingEnv, DenoisingVectorEnv
from envs.wrappers import EpisodeStatistics, NextStepAutoreset
from sft_rl.errors import UserError
from sft_rl.policy import DenoisingPolicy
from sft_rl.runs.parts import network_of, networks_of


def score(samples: torch.Tensor) -> torch.Tensor:
    return samples.square().sum(1)


@pytest.fixture
def policy(tiny_config: Any) -> DenoisingPolicy:
    torch.manual_seed(0)
    networks = networks_of(tiny_config(), network_of(tiny_config()))
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


@pytest.mark.parametrize("observation", ["dict", "flat"])
def test_it_is_gymnasiums_own_vector_env_of_scalar_ones(observation: str):
    options: dict[str, Any] = {
        "num_steps": 2,
        "shape": (2,),
        "reward": score,
        "observation": observation,
    }
    ours = DenoisingVectorEnv(num_envs=3, **options)
    theirs = SyncVectorEnv(
        [lambda: DenoisingEnv(**options)] * 3, autoreset_mode=AutoresetMode.SAME_STEP
    )
    for name in ("observation_space", "action_space", "single_observation_space"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.autoreset_mode is theirs.autoreset_mode
    assert data_equivalence(ours.reset(seed=5), theirs.reset(seed=5))
    source = np.random.default_rng(0)
    for step in range(1, 6):
        actions = source.normal(size=(3, 2)).astype(np.float32)
        *found, infos = ours.step(actions)
        *expected, their_infos = theirs.step(actions)
        assert data_equivalence(found[0], expected[0])
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
        assert np.array_equal(found[2], expected[2])
        assert np.array_equal(found[3], expected[3])
        assert infos.keys() == their_infos.keys()
        if step % 2 == 0:
            for i, final in enumerate(their_infos["final_obs"]):
                row = infos["final_obs"][i] if observation == "flat" else None
                assert data_equivalence(
                    {k: v[i] for k, v in infos["final_obs"].items()} if row is None else row, final
                )


def test_the_pretrained_sampler_is_the_standard_normal_policy(policy: DenoisingPolicy):
    env = DenoisingVectorEnv(
        num_envs=5, num_steps=4, shape=(2,), action="noise", policy=policy, array="torch"
    )
    seen, _ = env.reset(seed=0)
    noise = torch.randn(4, 5, 2)
    x = seen["latent"]
    for k in range(4):
        x, *_ = policy.act(x, torch.tensor(k), noise[k])
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


@pytest.mark.parametrize("action", ["next_latent", "noise", "epsilon"])
@pytest.mark.parametrize("observation", ["dict", "flat"])
def test_gymnasiums_checker_has_nothing_to_say(
    make_options: dict[str, Any], action: str, observation: str
):
    """But that it would rather have actions in [-1, 1], unless they are declared to be."""
    options = {"action": action, "observation": observation, "render_mode": "rgb_array"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        declared = gymnasium.make(**make_options, **options, action_bound=1.0)
        check_env(declared.unwrapped)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(gymnasium.make(**make_options, **options).unwrapped)
    assert {"recommend using a symmetric" in str(warning.message) for warning in caught} == {True}


def test_gymnasium_makes_one_batched_env(make_options: dict[str, Any]):
    vector = gymnasium.make_vec(**make_options, num_envs=6, num_steps=3)
    assert isinstance(vector.unwrapped, envs.DenoisingVectorEnv)
    seen, _ = vector.reset(seed=0)
    assert seen in vector.observation_space
    for step in range(1, 7):
        seen, rewards, ended, truncated, infos = vector.step(vector.action_space.sample())
        assert seen in vector.observation_space
        assert rewards.shape == ended.shape == truncated.shape == (6,)
        assert ended.all() == ("final_obs" in infos) == (step % 3 == 0)
        assert not truncated.any()


def test_seeding_is_exact(make_options: dict[str, Any]):
    """Same seed, same episodes, over resets too; without one they differ from env to env."""

    def episodes(seed: int | None) -> np.ndarray:
        env = gymnasium.make_vec(**make_options, num_envs=3, num_steps=2, action="epsilon")
        starts = [env.reset(seed=seed)[0]["latent"]]
        starts += [env.step(np.zeros((3, 2)))[0]["latent"] for _ in range(4)]
        return np.stack([*starts, env.reset()[0]["latent"]])

    assert np.array_equal(episodes(5), episodes(5))
    assert not np.array_equal(episodes(5), episodes(6))
    assert not np.array_equal(episodes(None), episodes(None))
    assert len(np.unique(episodes(5))) == episodes(5).size


@pytest.mark.parametrize("rendered", [np.zeros((5, 2)), np.zeros((5, 3, 8, 8))])
def test_pictures(rendered: np.ndarray):
    env = DenoisingVectorEnv(
        num_envs=5, num_steps=2, shape=rendered.shape[1:], render_mode="rgb_array"
    )
    env.reset(seed=0)
    pictures = env.render() or ()
    assert len(pictures) == 5
    env.render_mode = "together"
    for picture in (*pictures, *(env.render() or ())):
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.std() > 0
    env.render_mode = "rgb_array"
    ended = NextStepAutoreset(env)
    last = np.full((5, *rendered.shape[1:]), 0.5, np.float32)
    ended.reset(seed=0)
    for _ in range(2):
        ended.step(last)
    expected = env.draw(torch.from_numpy(last)) or ()
    np.testing.assert_array_equal(ended.render(), expected)
    ended.step(last)  # starts the next episodes
    np.testing.assert_array_equal(ended.render(), env.render())


def test_statistics_of_tensors_are_those_of_arrays():
    found = []
    for array in ("numpy", "torch"):
        make = partial(DenoisingVectorEnv, num_envs=3, num_steps=2, shape=(2,), array=array)
        env = EpisodeStatistics(make(reward=lambda x: x[:, 0]))
        env.reset(seed=0)
        env.step(np.ones((3, 2)))
        *_, rewards, ended, _, infos = env.step(np.arange(6).reshape(3, 2))
        assert all(isinstance(x, Tensor) == (array == "torch") for x in (rewards, ended))
        found.append((np.asarray(rewards), infos["episode"]["r"], infos["episode"]["l"]))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0][1], [0.0, 2.0, 4.0])


def test_bad_input_is_named(policy: DenoisingPolicy):
    env = DenoisingEnv(num_steps=1, shape=(2,))
    with pytest.raises(UserError, match=r"call reset\(\)"):
        env.step(np.zeros(2))
    env.reset(seed=0)
    with pytest.raises(UserError, match=r"shape \(3,\) given, expected \(2,\)"):
        env.step(np.zeros(3))
    with pytest.raises(UserError, match="not finite"):
        env.step(np.array([0.0, np.nan]))
    env.step(np.zeros(2))
    with pytest.raises(UserError, match="ended"):
        env.step(np.zeros(2))
    vector = DenoisingVectorEnv(num_envs=3, num_steps=1, shape=(2,))
    with pytest.raises(UserError, match=r"call reset\(\)"):
        vector.step(np.zeros((3, 2)))
    vector.reset(seed=0)
    with pytest.raises(UserError, match=r"shape \(2,\) given, expected \(3, 2\)"):
        vector.step(np.zeros(2))
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(UserError, match="not finite"):
            vector.step(np.full((3, 2), bad))
    vector.step(np.full((3, 2), 3e38))  # finite, though their sum is not
    for options, message in (
        ({"action": "noisy"}, "did you mean 'noise'"),
        ({"action": "noise"}, "moves a pretrained sampler"),
        ({"observation": "flatt"}, "did you mean 'flat'"),
        ({"action_bound": 0.0}, "action_bound: must be a positive number, got 0.0"),
    ):
        with pytest.raises(UserError, match=message):
            DenoisingEnv(num_steps=1, shape=(2,), **options)
    with pytest.raises(UserError, match="device: array='numpy' lives on the cpu"):
        DenoisingVectorEnv(num_envs=1, num_steps=1, shape=(2,), device="cuda")


@pytest.mark.parametrize("array", ["numpy", "torch"])
def test_a_reset_starts_where_it_is_told_once(array: str):
    options: dict[str, Any] = {"num_steps": 1, "shape": (2,), "num_classes": 3}
    env = DenoisingVectorEnv(num_envs=4, array=array, **options)
    fresh, _ = env.reset(seed=5)
    start = np.repeat(np.float32([[1.0, -2.0], [0.5, 0.0]]), 2, axis=0)
    seen, _ = env.reset(seed=5, options={"latent": start, "label": [2, 2, 0, 0]})
    assert np.asarray(seen["latent"]).tolist() == start.tolist()
    assert np.asarray(seen["label"]).tolist() == [2, 2, 0, 0]
    following = env.step(start)[0]  # the next episode is the one that would have come anyhow
    env.reset(seed=5)
    assert np.array_equal(following["latent"], env.step(start)[0]["latent"])
    part, _ = env.reset(seed=5, options={"label": np.array([1, 1, 1, 1])})
    assert np.array_equal(part["latent"], fresh["latent"])
    scalar, _ = DenoisingEnv(**options).reset(seed=5, options={"latent": start[0], "label": 1})
    assert (scalar["latent"].tolist(), scalar["label"]) == (start[0].tolist(), 1)


@pytest.mark.parametrize(
    ("num_classes", "options", "message"),
    [
        (0, {"latents": 0}, "option 'latents' is unknown; did you mean 'latent'"),
        (0, {"latent": [0.0, 0.0]}, r"'latent' has shape \(2,\), expected \(3, 2\)"),
        (0, {"latent": np.full((3, 2), np.nan)}, "'latent' holds numbers that are not finite"),
        (0, {"latent": "noise"}, "'latent' (holds no numbers|has shape)"),
        (0, {"label": [0, 0, 0]}, "'label' is for a class-conditional model"),
        (4, {"label": [0, 1, 4]}, "'label' must hold whole numbers 0 to 3"),
        (4, {"label": [0.0, 1.0, 2.5]}, "'label' must hold whole numbers 0 to 3"),
    ],
)
def test_wrong_starts_are_named(num_classes: int, options: dict[str, Any], message: str):
    env = DenoisingVectorEnv(num_envs=3, num_steps=2, shape=(2,), num_classes=num_classes)
    with pytest.raises(UserError, match=message):
        env.reset(options=options)


def test_noise_cannot_move_a_deterministic_sampler(make_options: dict[str, Any]):
    settings = (*make_options.pop("settings"), "sampler.eta=0", "sampler.final_std=0")
    with pytest.raises(UserError, match=r"sampler.eta.* or use 'next_latent'"):
        gymnasium.make_vec(**make_options, settings=settings, action="noise")


def test_sources_that_do_not_fit_are_named(
    policy: DenoisingPolicy, tiny_settings: tuple[str, ...], tmp_path: Path
):
    preset = {"preset": "swiss_roll", "settings": tiny_settings}
    for options, message in (
        ({"preset": "swiss_roll", "policy": policy}, "exactly one of preset, run or policy"),
        ({"policy": policy, "reward": "adversary"}, "'adversary' is unknown"),
        ({"policy": policy, "reward": "adversarial"}, "needs a preset's or a run's data"),
        ({"run": tmp_path}, "holds no run"),
        ({**preset, "reward": "critic"}, "give run=FOLDER"),
        ({**preset, "reward_options": {"batch_size": 4}}, "are for reward='adversarial'"),
    ):
        with pytest.raises(UserError, match=message):
            envs.factory.env_arguments(**options)
    for options, message in (
        ({"batch": 4}, "'batch' is unknown; did you mean 'batch_size'"),
        ({"update_every": 0}, "reward_options.update_every: must be positive, got 0"),
    ):
        with pytest.raises(UserError, match=message):
            envs.factory.env_arguments(**preset, reward="adversarial", reward_options=options)
