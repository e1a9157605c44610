"""Image networks: grids of steps go through in one call, and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm as apply_spectral_norm

from sft_rl.config import CriticConfig, ModelConfig, NoiseConfig, ValueConfig
from sft_rl.critics.network import r1_penalty
from sft_rl.errors import UserError
from sft_rl.networks import critic_network, noise_network, value_network

DIGITS = (1, 8, 8)
STEPS = torch.arange(3.0)[:, None]


def unet_of(shape: tuple[int, ...], model: dict[str, object]) -> nn.Module:
    return noise_network(ModelConfig.model_validate(model), NoiseConfig(), shape)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_a_grid_of_fractional_times_equals_single_calls_of_diffusers(tiny_unet):
    network = unet_of(DIGITS, {"kind": "unet", "unet": tiny_unet})
    x, times = torch.randn(3, 2, *DIGITS), torch.tensor([10.25, 5.5, 0.0])
    grid = network(x, times[:, None])
    assert grid.shape == x.shape
    for k, time in enumerate(times):
        torch.testing.assert_close(grid[k], network.unet(x[k], time).sample)
    assert not torch.allclose(network(x, times[:, None] + 0.5), grid)


def test_channels_last_changes_nothing_but_the_memory(tiny_unet):
    options = {"kind": "unet", "unet": tiny_unet}
    plain = unet_of(DIGITS, options)
    last = unet_of(DIGITS, {**options, "channels_last": True})
    last.load_state_dict(plain.state_dict())
    x = torch.randn(4, *DIGITS)
    torch.testing.assert_close(last(x, torch.tensor(3.0)), plain(x, torch.tensor(3.0)))


def test_bfloat16_rounds_inside_and_returns_float32(tiny_unet):
    options = {"kind": "unet", "unet": tiny_unet}
    plain = unet_of(DIGITS, options)
    half = unet_of(DIGITS, {**options, "precision": "bfloat16"})
    half.load_state_dict(plain.state_dict())
    x = torch.randn(4, *DIGITS)
    exact, rounded = (network(x, torch.tensor(3.0)) for network in (plain, half))
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.0, atol=0.05 * exact.abs().max().item())
    rounded.square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for p in half.parameters())


@pytest.mark.parametrize(
    ("shape", "changes", "words"),
    [
        ((2,), {}, ["model.kind", "points of 2"]),
        ((1, 7, 7), {}, ["2 levels", "7x7"]),
        ((1, 8, 8), {"in_channels": 3}, ["in_channels is 3", "1x8x8"]),
        ((1, 8, 8), {"sample_size": 32}, ["sample_size is 32", "1x8x8"]),
        ((1, 8, 8), {"sample_size": [8, 16]}, ["sample_size is [8, 16]", "1x8x8"]),
        ((1, 8, 8), {"out_channels": 3}, ["out_channels is 3", "1x8x8"]),
        ((1, 8, 8), {"layers": 2}, ["model.unet", "layers"]),
        ((1, 8, 8), {"norm_num_groups": 3}, ["model.unet", "divisible"]),
    ],
)
def test_a_unet_that_does_not_fit_is_refused(tiny_unet, shape, changes, words):
    with pytest.raises(UserError) as error:
        unet_of(shape, {"kind": "unet", "unet": {**tiny_unet, **changes}})
    assert all(word in str(error.value) for word in words), error.value


def test_an_mlp_does_not_take_images_and_a_convolution_no_points():
    with pytest.raises(UserError, match=r"critic\.kind: an MLP takes points"):
        critic_network(CriticConfig(), DIGITS, num_classes=0)
    with pytest.raises(UserError, match=r"value\.kind: an MLP takes points"):
        value_network(ValueConfig(), DIGITS, num_steps=10, num_classes=0)
    with pytest.raises(UserError, match="takes images"):
        critic_network(CriticConfig(kind="conv"), (2,), num_classes=0)
    with pytest.raises(UserError, match="takes images"):
        value_network(ValueConfig(kind="conv"), (2,), num_steps=10, num_classes=0)
    with pytest.raises(UserError, match="at least 32x32"):
        critic_network(CriticConfig(kind="paper_conv"), DIGITS, num_classes=0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 10, 6)])
@pytest.mark.parametrize("regulariser", ["gradient_penalty", "spectral_norm"])
def test_the_convolutional_critic_scores_images_of_any_size(shape, regulariser):
    options = {"kind": "conv", "width": 8, "regulariser": regulariser}
    critic = critic_network(CriticConfig(**options), shape, num_classes=0)
    assert critic(torch.randn(5, *shape)).shape == (5, 1)


def singular_value(layer: nn.Conv2d, shape: tuple[int, ...]) -> float:
    """Largest singular value of a convolution itself: of the matrix that maps images to images."""
    columns = torch.eye(math.prod(shape)).reshape(-1, *shape)
    images = F.conv2d(columns, layer.weight, stride=layer.stride, padding=layer.padding)
    return torch.linalg.matrix_norm(images.flatten(1), ord=2).item()


@pytest.mark.parametrize(("kind", "shape"), [("conv", (1, 16, 16)), ("paper_conv", (1, 32, 32))])
def test_spectral_norm_bounds_the_kernel_and_the_convolution_only_by_its_overlaps(kind, shape):
    options = {"kind": kind, "width": 2, "regulariser": "spectral_norm"}
    critic = critic_network(CriticConfig(**options), shape, num_classes=0)
    sizes = {}
    for layer in (m for m in critic.modules() if isinstance(m, nn.Conv2d)):
        layer.register_forward_hook(lambda m, given, out: sizes.update({m: given[0].shape[1:]}))
    for _ in range(200):  # every training call takes one step of the power iteration
        critic(torch.randn(1, *shape))
    stretched = []
    for layer, size in sizes.items():
        kernel = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2).item()
        assert kernel == pytest.approx(1.0, rel=1e-3)
        overlap = math.ceil(layer.kernel_size[0] / layer.stride[0])
        if layer.kernel_size == tuple(size[1:]):
            overlap = 1  # a single patch
        stretched.append(singular_value(layer, size))
        assert 1.0 - 1e-3 <= stretched[-1] <= overlap + 1e-3
    assert max(stretched) > 1.2


def test_a_3x3_convolution_of_spectral_norm_1_stretches_almost_threefold():
    """In one dimension [1, 1, 1] has the largest eigenvalue 1 + 2 cos(pi / (n + 1))."""
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.constant_(layer.weight, 0.7)
    apply_spectral_norm(layer)
    torch.testing.assert_close(layer.weight, torch.full((1, 1, 3, 3), 1 / 3))
    expected = (1 + 2 * math.cos(math.pi / 17)) ** 2 / 3
    assert singular_value(layer, (1, 16, 16)) == pytest.approx(expected, rel=1e-5)
    assert expected > 2.9


@pytest.mark.parametrize("value", [{"kind": "conv", "width": 8}, {"kind": "step_scaled"}])
def test_a_value_network_takes_a_grid_of_steps(value):
    network = value_network(ValueConfig(**value), DIGITS, num_steps=10, num_classes=0)
    x = torch.randn(3, 2, *DIGITS)
    grid = network(x, STEPS)
    assert grid.shape == (3, 2, 1)
    for k in range(3):
        torch.testing.assert_close(grid[k], network(x[k], torch.tensor(float(k))))
    assert not torch.allclose(network(x, STEPS + 1), grid)


def test_r1_is_the_squared_gradient_at_real_samples():
    weight = torch.randn(*DIGITS)
    penalty, norm = r1_penalty(lambda x: (x * weight).sum((1, 2, 3)), torch.randn(6, *DIGITS))
    assert penalty.item() == pytest.approx(weight.square().sum().item(), rel=1e-5)
    assert norm.item() == pytest.approx(weight.norm().item(), rel=1e-5)
