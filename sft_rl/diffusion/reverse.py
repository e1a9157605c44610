"""The reverse step and its log-density. Each formula of the sampler stands here, once."""

import math

import torch
from torch import Tensor


def expand(values: Tensor, event_ndim: int) -> Tensor:
    """Append the dimensions of a sample, so that per-step numbers multiply latents."""
    return values.reshape(*values.shape, *[1] * event_ndim)


def reverse_mean(x_t: Tensor, output: Tensor, coef_x: Tensor, coef_output: Tensor) -> Tensor:
    """Mean of p(x_{t-1} | x_t): ``coef_x * x_t + coef_output * output``, coefficients expanded."""
    return coef_x * x_t + coef_output * output


def gaussian_log_prob(
    x: Tensor, mean: Tensor, std: Tensor, *, event_ndim: int, reduction: str = "sum"
) -> Tensor:
    """Log-density of an isotropic Gaussian, in nats.

    Args:
        x: Where to evaluate, shape (..., *shape).
        mean: Shape (..., *shape).
        std: One standard deviation a sample, expanded: shape (..., 1, ..., 1).
        event_ndim: Number of dimensions of a sample.
        reduction: ``"sum"`` over the dimensions of a sample (a true log-density), or ``"mean"``
            (the paper's choice for images; divides it by their number).

    Returns:
        Shape (...). Zero where ``std`` is 0: such a step has no density, and nothing to learn
        from it by a policy gradient.
    """
    dims = tuple(range(-event_ndim, 0))
    has_density = std > 0
    safe_std = torch.where(has_density, std, 1.0)
    per_dim = -0.5 * ((x - mean) / safe_std) ** 2 - safe_std.log() - 0.5 * math.log(2 * math.pi)
    per_dim = torch.where(has_density, per_dim, 0.0)
    return per_dim.sum(dims) if reduction == "sum" else per_dim.mean(dims)


def gaussian_kl(
    mean: Tensor, std: Tensor, ref_mean: Tensor, ref_std: Tensor, *, event_ndim: int
) -> Tensor:
    """KL(N(mean, std^2) || N(ref_mean, ref_std^2)) in nats, summed over a sample, shape (...).

    Standard deviations are expanded as in :func:`gaussian_log_prob` and positive.
    """
    dims = tuple(range(-event_ndim, 0))
    ratio = (std / ref_std) ** 2
    per_dim = 0.5 * (ratio + ((mean - ref_mean) / ref_std) ** 2 - 1.0 - ratio.log())
    return per_dim.sum(dims)
