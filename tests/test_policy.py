"""The policy: what it samples is what it scores, before and after a trip to a worker."""

from collections.abc import Callable

import pytest
import torch

from sft_rl.config import Config, ResolvedConfig
from sft_rl.policy import DenoisingPolicy, load_arrays, to_arrays
from sft_rl.runs.parts import network_of, policy_of


def make_policy(config: Config, seed: int) -> DenoisingPolicy:
    torch.manual_seed(seed)
    return policy_of(config, network_of(config))


@pytest.fixture
def config(tiny_config: Callable[..., ResolvedConfig]) -> Config:
    return tiny_config("sampler.learn_std=true")


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def test_sampled_log_prob_equals_rescored(config: Config):
    policy = make_policy(config, 0)
    latents = noise(64, 2)
    for k in range(policy.num_steps):
        index = torch.tensor(k)
        action, log_prob, _ = policy.act(latents, index, noise(64, 2))
        torch.testing.assert_close(policy.log_prob(latents, action, index), log_prob)


def test_the_whole_grid_at_once_equals_step_by_step(config: Config):
    policy = make_policy(config, 0)
    latents, actions = noise(policy.num_steps, 16, 2), noise(policy.num_steps, 16, 2)
    grid = policy.log_prob(latents, actions, torch.arange(policy.num_steps)[:, None])
    rows = [
        policy.log_prob(latents[k], actions[k], torch.tensor(k)) for k in range(policy.num_steps)
    ]
    torch.testing.assert_close(grid, torch.stack(rows))


def test_weights_that_travelled_act_the_same(config: Config):
    sender, receiver = make_policy(config, 0), make_policy(config, 1)
    index = torch.tensor(2)
    expected, *_ = sender.act(noise(8, 2), index, noise(8, 2))
    load_arrays(receiver, to_arrays(sender))
    received, *_ = receiver.act(noise(8, 2), index, noise(8, 2))
    assert torch.equal(expected, received)


def test_learned_std_leaves_the_last_step_alone(config: Config):
    policy = make_policy(config, 0)
    assert policy.log_std_scale is not None
    with torch.no_grad():
        policy.log_std_scale.fill_(0.5)
    torch.testing.assert_close(policy.std[:-1], policy.base_std[:-1] * torch.e**0.5)
    assert policy.std[-1] == policy.base_std[-1] == pytest.approx(config.sampler.final_std)


def test_sampling_adds_the_last_steps_noise_as_training_does(config: Config):
    """The released code samples without it. Here the last step differs from its mean by it."""
    policy = make_policy(config, 0)
    with torch.no_grad():
        path = list(policy.denoise(noise(4096, 2), torch.Generator().manual_seed(0)))
        residual = path[-1] - policy.mean(path[-2], torch.tensor(policy.num_steps - 1))
    assert residual.std().item() == pytest.approx(config.sampler.final_std, rel=0.05)


def test_samples_do_not_depend_on_calls_in_between(config: Config):
    policy = make_policy(config, 0)
    first = policy.sample(100, torch.Generator().manual_seed(5))
    torch.rand(10)
    assert torch.equal(first, policy.sample(100, torch.Generator().manual_seed(5)))
