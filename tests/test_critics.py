"""Critics: closed forms of penalties and witnesses; every one scores real data higher."""

from collections.abc import Callable

import pytest
import torch

from sft_rl.config import ResolvedConfig
from sft_rl.critics import WITNESSES
from sft_rl.critics.network import OBJECTIVES, n2ce_loss, one_sided_gradient_penalty
from sft_rl.critics.witness import MMDCritic, SlicedWassersteinCritic
from sft_rl.runs.parts import critic_of

SOURCE = torch.Generator().manual_seed(0)
REAL, FAKE = torch.randn(64, 2, generator=SOURCE), torch.randn(64, 2, generator=SOURCE) + 1.0


@pytest.mark.parametrize(("target", "expected"), [(1.0, 16.0), (0.0, 25.0), (6.0, 0.0)])
def test_gradient_penalty_of_a_linear_critic(target: float, expected: float):
    """f(x) = 3 x + 4 y has gradient norm 5 everywhere."""
    penalty, norm = one_sided_gradient_penalty(
        lambda x: x @ torch.tensor([3.0, 4.0]),
        REAL,
        FAKE,
        target=target,
        generator=torch.Generator().manual_seed(0),
    )
    assert penalty.item() == pytest.approx(expected, rel=1e-5)
    assert norm.item() == pytest.approx(5.0, rel=1e-5)


def test_a_lazy_penalty_weighs_as_much_over_its_steps(tiny_config: Callable[..., ResolvedConfig]):
    """In every third step three times; the steps are counted in what a checkpoint holds."""
    critic = critic_of(tiny_config("critic.penalty_every=3", "critic.drift_weight=0"))
    for step in range(4):
        metrics = critic.loss(REAL, FAKE, torch.Generator().manual_seed(0)).metrics
        penalty = metrics["critic_loss"] + metrics["critic_gap"]
        expected = 3.0 * metrics["critic_penalty"] if step in (0, 3) else torch.tensor(0.0)
        torch.testing.assert_close(penalty, expected)
        critic.after_step()
    assert critic.state_dict()["num_steps"] == 4


def test_r1_and_r2_are_the_squared_slopes_at_both_kinds(tiny_config: Callable[..., ResolvedConfig]):
    """f(x) = 3 x + 4 y: 25 at real samples and 25 at generated ones."""
    critic = critic_of(tiny_config("critic.regulariser=r1_r2", "critic.objective=relativistic"))
    critic.network = torch.nn.Linear(2, 1)
    with torch.no_grad():
        critic.network.weight.copy_(torch.tensor([[3.0, 4.0]]))
    metrics = critic.loss(REAL, FAKE, torch.Generator()).metrics
    assert metrics["critic_penalty"].item() == pytest.approx(50.0, rel=1e-5)
    assert metrics["critic_input_grad_norm"].item() == pytest.approx(5.0, rel=1e-5)


def test_several_critics_learn_apart_and_score_by_their_mean(
    tiny_config: Callable[..., ResolvedConfig],
):
    """A step of the two together is a step of each alone."""
    settings = ("critic.regulariser=r1_r2", "critic.objective=relativistic")
    torch.manual_seed(0)
    both = critic_of(tiny_config(*settings, "critic.num_networks=2"))
    torch.manual_seed(0)
    alone = [critic_of(tiny_config(*settings)) for _ in range(2)]
    assert not torch.equal(alone[0](REAL), alone[1](REAL))
    torch.testing.assert_close(both(REAL), (alone[0](REAL) + alone[1](REAL)) / 2)
    for critic in (both, *alone):
        optimizer = torch.optim.Adam(critic.parameters())
        critic.loss(REAL, FAKE, torch.Generator()).value.backward()
        optimizer.step()
        critic.after_step()
    for own, other in zip(both.called, alone, strict=True):
        torch.testing.assert_close(own.state_dict(), other.state_dict())


def test_weight_clipping_bounds_every_weight(tiny_config: Callable[..., ResolvedConfig]):
    critic = critic_of(tiny_config("critic.regulariser=weight_clip"))
    critic.after_step()
    assert max(p.abs().max().item() for p in critic.parameters()) <= 0.05 + 1e-7


def test_spectral_norm_makes_the_network_lipschitz(tiny_config: Callable[..., ResolvedConfig]):
    settings = ("critic.regulariser=spectral_norm", "critic.num_fourier=0")
    critic = critic_of(tiny_config(*settings))
    for _ in range(50):  # every training call takes one step of the power iteration
        critic(REAL)
    slopes = (critic(REAL) - critic(FAKE)).abs() / (REAL - FAKE).norm(dim=1)
    assert slopes.max() <= 1.02


@pytest.mark.parametrize("objective", [*OBJECTIVES, *WITNESSES])
def test_a_trained_critic_scores_real_data_higher(
    tiny_config: Callable[..., ResolvedConfig], objective: str
):
    torch.manual_seed(0)
    critic = critic_of(tiny_config(f"critic.objective={objective}", "training.batch_size=64"))
    parameters = list(critic.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-2) if parameters else None
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        loss = critic.loss(REAL, FAKE, generator)
        if optimizer is not None:
            optimizer.zero_grad()
            loss.value.backward()
            optimizer.step()
    assert (critic(REAL).mean() - critic(FAKE).mean()).item() > 0.01
    assert loss.metrics["critic_gap"] > 0


def test_plain_nce_is_logistic_regression():
    real, fake = torch.tensor([0.3, -1.0]), torch.tensor([2.0, 0.1])
    logistic = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.cat([real, fake]), torch.tensor([1.0, 1.0, 0.0, 0.0]), reduction="sum"
    )
    assert n2ce_loss(real, fake, noise_ratio=1.0).item() == pytest.approx(logistic.item() / 2)


def test_mmd_witness_gap_is_the_squared_mmd():
    critic = MMDCritic(64, (2,))
    loss = critic.loss(REAL, FAKE, torch.Generator())

    def mean_kernel(x: torch.Tensor, y: torch.Tensor) -> float:
        squared = torch.cdist(x.double(), y.double()).square()
        return sum((s / (s + squared)).mean().item() for s in critic.scales) / 5

    mmd = mean_kernel(REAL, REAL) + mean_kernel(FAKE, FAKE) - 2 * mean_kernel(REAL, FAKE)
    assert loss.metrics["critic_gap"].item() == pytest.approx(mmd, rel=1e-4)


def test_sliced_potential_points_along_the_transport():
    """In one dimension the gradient at the i-th smallest sample is the way to the i-th real one."""
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 50, 1, generator=generator)
    critic = SlicedWassersteinCritic(50, (1,), num_projections=1)
    critic.loss(real, fake, generator)
    x = fake.sort(dim=0).values[1:-1].clone().requires_grad_()
    critic(x).sum().backward()
    transport = real.sort(dim=0).values[1:-1] - x.detach()
    torch.testing.assert_close(x.grad, transport, rtol=1e-3, atol=1e-3)
