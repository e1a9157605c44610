"""The pretraining loss of a DDPM (Ho et al., 2020, equation 14) with continuous time."""

from collections.abc import Callable

import torch
from torch import Tensor

from sft_rl.diffusion.noise import NoiseSchedule
from sft_rl.types import given


def epsilon_matching_loss(
    network: Callable[..., Tensor],
    x_0: Tensor,
    *,
    noise: NoiseSchedule,
    generator: torch.Generator,
    num_times: int,
    continuous: bool = True,
    labels: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the predicted noise at random times.

    Times are stratified over the batch (Kingma et al., 2021), which lowers the variance, and
    fractional if `continuous`, so that one network serves every few-step schedule.

    Args:
        network: Maps (x_t, timesteps), and labels if there are classes, to the predicted noise.
        x_0: Data, shape (B, *shape).
        noise: The forward process.
        generator: Source of times and noise, on the device of `x_0`.
        num_times: Different times in the batch, at most B: the same time is shared by
            B / num_times samples, so that the network embeds it once.
        continuous: Draw fractional times; else whole ones.
        labels: Classes of the data, int64, shape (B,); None for an unconditional model.

    Returns:
        Scalar, averaged over the batch and all dimensions.
    """
    device = x_0.device
    num_times = min(num_times, len(x_0))
    offset = torch.rand(num_times, generator=generator, device=device)
    t = (torch.arange(num_times, device=device) + offset) / num_times
    t = t * (noise.num_train_timesteps - (1 if continuous else 0))
    t = (t if continuous else t.floor())[:, None]
    num = len(x_0) // num_times * num_times
    x_0 = x_0[:num].reshape(num_times, -1, *x_0.shape[1:])
    classes = given(None if labels is None else labels[:num].reshape(num_times, -1))
    eps = torch.randn(x_0.shape, generator=generator, device=device)
    return (network(noise.add_noise(x_0, eps, t), t, *classes) - eps).square().mean()
