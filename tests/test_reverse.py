"""The one log-prob and the one KL, against torch.distributions."""

import torch
from torch.distributions import Normal, kl_divergence

from sft_rl.diffusion.reverse import expand, gaussian_kl, gaussian_log_prob

MEAN, OTHER = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
X = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1))
STD = torch.tensor([0.3, 1.0, 2.0, 0.05, 0.7])


def test_log_prob_is_that_of_independent_normals():
    std = expand(STD, 2)
    expected = Normal(MEAN, std).log_prob(X)
    summed = gaussian_log_prob(X, MEAN, std, event_ndim=2)
    averaged = gaussian_log_prob(X, MEAN, std, event_ndim=2, reduction="mean")
    torch.testing.assert_close(summed, expected.sum((1, 2)))
    torch.testing.assert_close(averaged, expected.mean((1, 2)))


def test_a_step_without_noise_has_log_prob_zero_and_no_gradient():
    mean = MEAN.clone().requires_grad_()
    log_prob = gaussian_log_prob(X, mean, torch.zeros(5, 1, 1), event_ndim=2)
    log_prob.sum().backward()
    assert not log_prob.any()
    assert not mean.grad.any()


def test_kl_is_that_of_independent_normals():
    std, ref_std = expand(STD, 2), expand(STD.flip(0), 2)
    expected = kl_divergence(Normal(MEAN, std), Normal(OTHER, ref_std)).sum((1, 2))
    torch.testing.assert_close(gaussian_kl(MEAN, std, OTHER, ref_std, event_ndim=2), expected)
    assert not gaussian_kl(MEAN, std, MEAN, std, event_ndim=2).any()
