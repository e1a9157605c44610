"""The `*_paper` presets layer by layer: networks and updates of the paper's released code."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from sft_rl.config.files import load_config
from sft_rl.networks import critic_network, noise_network, value_network
from sft_rl.networks.mlp import StepScaledMLP

POINTS, CIFAR, CELEBA = (2,), (3, 32, 32), (3, 64, 64)
NUM_WEIGHTS = 20_000


def noise_of(preset: str, shape: tuple[int, ...]) -> nn.Module:
    config = load_config(preset)
    return noise_network(config.model, config.noise, shape)


def critic_of(preset: str, shape: tuple[int, ...]) -> nn.Module:
    return critic_network(load_config(preset).critic, shape, num_classes=0)


def value_of(preset: str, shape: tuple[int, ...]) -> nn.Module:
    config = load_config(preset)
    return value_network(config.value, shape, num_steps=config.sampler.num_steps, num_classes=0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def linear(name: str, fan_in: int, fan_out: int) -> tuple[object, ...]:
    return name, nn.Linear, (fan_out, fan_in)


def scaled(name: str, fan_in: int, fan_out: int) -> list[tuple[object, ...]]:
    return [
        linear(f"{name}.linear", fan_in, fan_out),
        (f"{name}.scale", nn.Embedding, (10, fan_out)),
    ]


def layers_of(network: nn.Module) -> list[tuple[object, ...]]:
    """Name, kind and weight's shape of every layer that has weights, in order."""
    return [
        (name.removeprefix("network."), type(layer), tuple(layer.weight.shape))
        for name, layer in network.named_modules()
        if hasattr(layer, "weight")
    ]


NOISE = [
    *scaled("hidden.0", 2, 128),
    *scaled("hidden.1", 128, 128),
    *scaled("hidden.2", 128, 128),
    linear("output", 128, 2),
]
CRITIC = [linear("1", 2, 256), linear("3", 256, 256), linear("5", 256, 1)]
VALUE = [*scaled("hidden.0", 2, 256), *scaled("hidden.1", 256, 256), *scaled("output", 256, 1)]


@pytest.mark.parametrize(
    ("build", "layers"), [(noise_of, NOISE), (critic_of, CRITIC), (value_of, VALUE)]
)
def test_the_networks_of_points(build, layers):
    assert layers_of(build("swiss_roll_paper", POINTS)) == layers


@pytest.mark.parametrize(
    ("preset", "shape", "widths"),
    [("cifar10_paper", CIFAR, (1024, 1024, 256)), ("celeba64_paper", CELEBA, (2048, 1024, 256))],
)
def test_the_value_of_images(preset, shape, widths):
    first, second, third = widths
    assert layers_of(value_of(preset, shape)) == [
        *scaled("hidden.0", math.prod(shape), first),
        *scaled("hidden.1", first, second),
        *scaled("hidden.2", second, third),
        linear("output", third, 1),
    ]


@pytest.mark.parametrize(
    ("preset", "shape", "sizes"),
    [("cifar10_paper", CIFAR, (16, 8, 4, 1)), ("celeba64_paper", CELEBA, (32, 16, 8, 5))],
)
def test_the_critic_of_images(preset, shape, sizes):
    critic = critic_of(preset, shape)
    convolutions = [layer for layer in critic.modules() if isinstance(layer, nn.Conv2d)]
    activations = [layer for layer in critic.modules() if isinstance(layer, nn.LeakyReLU)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [
        (3, 128),
        (128, 256),
        (256, 512),
        (512, 1),
    ]
    assert {c.kernel_size for c in convolutions} == {(4, 4)}
    assert [c.stride[0] for c in convolutions] == [2, 2, 2, 1]
    assert [c.padding[0] for c in convolutions] == [1, 1, 1, 0]
    assert [a.negative_slope for a in activations] == [0.2] * 3
    found = []
    for layer in convolutions:
        layer.register_forward_hook(lambda layer, given, out: found.append(out.shape[-1]))
    assert critic(torch.randn(2, *shape)).shape == (2, 1)
    assert tuple(found) == sizes


def test_the_critic_of_images_by_hand():
    critic = critic_of("cifar10_paper", CELEBA)
    *halving, last = (layer for layer in critic.modules() if isinstance(layer, nn.Conv2d))
    images = torch.randn(2, *CELEBA)
    h = images
    for layer in halving:
        h = F.leaky_relu(F.conv2d(h, layer.weight, layer.bias, stride=2, padding=1), 0.2)
    expected = F.conv2d(h, last.weight, last.bias).mean(dim=(2, 3))
    torch.testing.assert_close(critic(images), expected)


def step_scaled_by_hand(network: StepScaledMLP, x: Tensor, step: int, activation) -> Tensor:
    for layer in network.hidden:
        inner = F.linear(x, layer.linear.weight, layer.linear.bias)
        x = activation(layer.scale.weight[step] * inner)
    last = getattr(network.output, "linear", network.output)
    out = F.linear(x, last.weight, last.bias)
    return out if last is network.output else network.output.scale.weight[step] * out


def test_step_scaled_networks_by_hand():
    toy, images = "swiss_roll_paper", "cifar10_paper"
    points, pixels, step = torch.randn(5, *POINTS), torch.randn(5, *CIFAR), torch.tensor(3)
    noise, value = noise_of(toy, POINTS), value_of(toy, POINTS)
    expected = step_scaled_by_hand(noise, points, 3, F.softplus)
    torch.testing.assert_close(noise(points, step), expected)
    expected = step_scaled_by_hand(value, points, 3, F.relu)
    torch.testing.assert_close(value(points, step), expected)
    of_images = value_of(images, CIFAR)
    expected = step_scaled_by_hand(of_images.network, pixels.flatten(1), 3, F.relu)
    torch.testing.assert_close(of_images(pixels, step), expected)


def p_value(tensor: Tensor, distribution) -> float:
    return stats.kstest(tensor.detach().flatten()[:NUM_WEIGHTS].numpy(), distribution.cdf).pvalue


def glorot(layer: nn.Linear):
    return stats.norm(scale=math.sqrt(2.0 / (layer.in_features + layer.out_features)))


def torchs_own(fan_in: int):
    bound = 1.0 / math.sqrt(fan_in)
    return stats.uniform(-bound, 2.0 * bound)


def he(layer: nn.Conv2d):
    return stats.norm(scale=math.sqrt(2.0 / (16 * layer.in_channels)))


def test_initial_weights():
    """Each against its distribution, by Kolmogorov and Smirnov, at 1 in 1000 for all together."""
    toy, images = "swiss_roll_paper", "cifar10_paper"
    noise, value = noise_of(toy, POINTS), value_of(toy, POINTS)
    of_images = value_of(images, CIFAR).network
    glorots = [layer.linear for n in (noise, value, of_images) for layer in n.hidden]
    glorots += [value.output.linear, of_images.output]
    scales = [layer.scale for n in (noise, value, of_images) for layer in n.hidden]
    scales.append(value.output.scale)
    plain = [noise.output, *(m for m in critic_of(toy, POINTS) if isinstance(m, nn.Linear))]
    convolutions = [m for m in critic_of(images, CIFAR).modules() if isinstance(m, nn.Conv2d)]
    found = [p_value(layer.weight, glorot(layer)) for layer in glorots]
    found += [p_value(layer.weight, stats.uniform(0.0, 1.0)) for layer in scales]
    found += [p_value(layer.weight, torchs_own(layer.in_features)) for layer in plain]
    found += [p_value(layer.bias, torchs_own(layer.in_features)) for layer in (*glorots, *plain)]
    found += [p_value(layer.weight, he(layer)) for layer in convolutions]
    found += [p_value(layer.bias, torchs_own(16 * layer.in_channels)) for layer in convolutions]
    assert min(found) > 1e-3 / len(found)


@pytest.mark.parametrize(
    ("preset", "rates", "updates", "clip", "reduction"),
    [
        ("swiss_roll_paper", (5e-5, 1e-3, 1e-3), (5, 1), 1e6, "sum"),
        ("cifar10_paper", (1e-6, 1e-4, 1e-4), (5, 10), 0.1, "mean"),
        ("celeba64_paper", (1e-6, 1e-4, 1e-4), (5, 10), 0.1, "mean"),
    ],
)
def test_the_settings_of_the_updates(preset, rates, updates, clip, reduction):
    config = load_config(preset)
    sections = (config.policy, config.critic, config.value)
    assert tuple(section.learning_rate for section in sections) == rates
    assert {section.adam_betas for section in sections} == {(0.9, 0.999)}
    training = config.training
    assert (training.n_critic, training.n_generator) == updates
    assert (training.batch_size, config.sft_pg.transitions_per_update) == (128, 128)
    assert (training.lr_decay, training.select_best) == ("none", False)
    assert (config.policy.max_grad_norm, config.policy.log_prob_reduction) == (clip, reduction)
    assert config.policy.ema_decay == 0.0
    assert (config.critic.regulariser, config.critic.drift_weight) == ("none", 0.0)
    assert config.critic.num_warmup_steps == 0
    assert (config.sft_pg.baseline, config.sft_pg.normalise_advantages) == ("value", "none")
    assert config.sampler.num_steps == 10


def test_the_toys_epochs_are_counted_as_batches_and_steps():
    """10,000 points are 79 batches; the policy steps after the 4th, 9th … 79th of them."""
    config = load_config("swiss_roll_paper")
    batches = math.ceil(config.data.num_points / config.training.batch_size)
    policy_steps = sum((batch + 1) % config.training.n_critic == 0 for batch in range(1, 80))
    assert (batches, policy_steps) == (79, 16)
    assert config.pretraining.num_iterations == 2000 * batches
    assert config.training.num_iterations == 300 * policy_steps
    pretraining = config.pretraining
    assert (pretraining.optimizer, pretraining.learning_rate) == ("rmsprop", 1e-3)
    assert (pretraining.batch_size, pretraining.max_grad_norm) == (128, 1.0)
    assert (pretraining.lr_decay, pretraining.warmup, pretraining.ema_decay) == ("none", 0, 0.0)
