"""The pretraining loss of a DDPM (Ho et al., 2020, equation 14) with continuous time."""

from collections.abc import Callable

import torch
from torch import Tensor

from sft_rl.diffusion.noise import NoiseSchedule


def epsilon_matching_loss(
    network: Callable[[Tensor, Tensor], Tensor],
    x_0: Tensor,
    *,
    noise: NoiseSchedule,
    generator: torch.Generator,
    continuous: bool = True,
) -> Tensor:
    """Mean squared error of the predicted noise at random times.

    Times are stratified over the batch (Kingma et al., 2021), which lowers the variance, and
    fractional if `continuous`, so that one network serves every few-step schedule.

    Args:
        network: Maps (x_t, timesteps) to the predicted noise.
        x_0: Data, shape (B, *shape).
        noise: The forward process.
        generator: Source of times and noise, on the device of `x_0`.
        continuous: Draw fractional times; else whole ones.

    Returns:
        Scalar, averaged over the batch and all dimensions.
    """
    batch, device = len(x_0), x_0.device
    offset = torch.rand(batch, generator=generator, device=device)
    t = (torch.arange(batch, device=device) + offset) / batch * noise.num_train_timesteps
    t = (t - 0.5).clamp(0.0, noise.num_train_timesteps - 1.0) if continuous else t.floor()
    eps = torch.randn(x_0.shape, generator=generator, device=device)
    return (network(noise.add_noise(x_0, eps, t), t) - eps).square().mean()
