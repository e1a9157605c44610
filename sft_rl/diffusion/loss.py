"""The pretraining loss on any Gaussian path, with continuous time."""

from collections.abc import Callable

import torch
from torch import Tensor

from sft_rl.diffusion.noise import GaussianPath
from sft_rl.diffusion.prediction import Prediction
from sft_rl.types import given


def matching_loss(
    network: Callable[..., Tensor],
    x_0: Tensor,
    *,
    path: GaussianPath,
    prediction: Prediction,
    generator: torch.Generator,
    num_times: int,
    continuous: bool = True,
    labels: Tensor | None = None,
    teacher: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Mean squared error of what the network predicts, at random times.

    Of the noise it is the loss of a DDPM (Ho et al., 2020, equation 14), of the velocity that of
    flow matching, and of EDM's inner network Karras et al.'s (2022) with their weights, at times
    that are spread as their sampler's.

    Times are stratified over the batch (Kingma et al., 2021), which lowers the variance, and
    fractional if `continuous`, so that one network serves every few-step schedule.

    Args:
        network: Maps (x_t, timesteps), and labels if there are classes, to its prediction.
        x_0: Data, shape (B, *shape).
        path: The forward process.
        prediction: What the network predicts.
        generator: Source of times and noise, on the device of `x_0`.
        num_times: Different times in the batch, at most B: the same time is shared by
            B / num_times samples, so that the network embeds it once.
        continuous: Draw fractional times; else whole ones.
        labels: Classes of the data, int64, shape (B,), or vectors (B, D); None for an unconditional
            model.
        teacher: Its prediction is matched in place of the data's and noise's, without a gradient.

    Returns:
        Scalar, averaged over the batch and all dimensions.
    """
    device = x_0.device
    num_times = min(num_times, len(x_0))
    offset = torch.rand(num_times, generator=generator, device=device)
    t = (torch.arange(num_times, device=device) + offset) / num_times
    t = t * (path.num_train_timesteps - (1 if continuous else 0))
    t = (t if continuous else t.floor())[:, None]
    num = len(x_0) // num_times * num_times
    x_0 = x_0[:num].reshape(num_times, -1, *x_0.shape[1:])
    classes = given(
        None if labels is None else labels[:num].reshape(num_times, -1, *labels.shape[1:])
    )
    eps = torch.randn(x_0.shape, generator=generator, device=device)
    alpha, sigma = path.levels_for(t, x_0)
    x_t = prediction.input_scale(alpha, sigma) * path.add_noise(x_0, eps, t)
    of_data, of_noise = prediction.target(alpha, sigma)
    called_with = prediction.network_times(path.network_times(t), *path.levels(t))
    wanted: Tensor = of_data * x_0 + of_noise * eps
    if teacher is not None:
        with torch.no_grad():
            wanted = teacher(x_t, called_with, *classes)
    return (network(x_t, called_with, *classes) - wanted).square().mean()
