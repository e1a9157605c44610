"""The few-step sampler as a scheduler of diffusers.

This file needs torch and diffusers only: an exported pipeline takes a copy of it along.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


@dataclass
class FewStepSchedulerOutput(BaseOutput):  # type: ignore[misc]
    """What a step returns.

    Attributes:
        prev_sample: The next latent, shape (B, C, H, W).
    """

    prev_sample: Tensor


class FewStepScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A fixed number of fine-tuned denoising steps, each with coefficients of its own.

    Step k draws ``coef_x[k] * x + coef_output[k] * output + std[k] * noise``, where the output is
    what the model predicts of ``input_scale[k] * x``. Latents start from N(0, I). The steps are
    written for latents x of unit variance; pipelines of flow matching hand on what the model sees.

    Args:
        timesteps: What the model is called with at each step, decreasing, may be fractional.
        coef_x: Coefficient of the latent at each step.
        coef_output: Coefficient of the model's output at each step.
        std: Standard deviation of the noise added at each step.
        input_scale: What the model wants latents multiplied by; None for 1.
        clip: Bound of the |x_0| that each step expects; None for none.
        alpha_bar: The data's share of the variance at each step, for `clip`.
        target: The output as a mixture of data and noise at each step, for `clip`.
        asks_scale: Whether the pipeline calls :meth:`scale_model_input`. If not, latents between
            steps are ``input_scale[k] * x``, which has to be x at first.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        timesteps: list[float],
        coef_x: list[float],
        coef_output: list[float],
        std: list[float],
        input_scale: list[float] | None = None,
        clip: float | None = None,
        alpha_bar: list[float] | None = None,
        target: list[list[float]] | None = None,
        asks_scale: bool = True,
    ) -> None:
        self.timesteps = torch.tensor(timesteps)
        self.num_inference_steps = len(timesteps)

    def __len__(self) -> int:
        return len(self.timesteps)

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Move to a device. Whatever number is asked for, the steps are those it was tuned for."""
        self.timesteps = self.timesteps.to(device)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float) -> Tensor:
        """Return the latents at the scale that the model wants at one of the timesteps."""
        if not self.config.asks_scale:
            return sample
        return self._input_scale(self._step_index(timestep), sample) * sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> FewStepSchedulerOutput | tuple[Tensor]:
        """Take one step.

        Args:
            model_output: What the model predicts, shape (B, C, H, W); channels behind those of the
                latents, a learned variance, are left out.
            timestep: One of ``timesteps``.
            sample: The latents, shape (B, C, H, W).
            generator: Source of the noise, one, or one for each image.
            return_dict: Return an object; else a tuple.

        Raises:
            ValueError: If the timestep is none of the schedule's.
        """
        k = self._step_index(timestep)
        if not self.config.asks_scale:
            sample = sample / self._input_scale(k, sample)
        output = model_output[:, : sample.shape[1]]  # a learned variance lies behind the mean
        coef_output = self._at(self.config.coef_output, k, sample)
        mean = self._at(self.config.coef_x, k, sample) * sample + coef_output * output
        if self.config.clip is not None:
            bar = self._at(self.config.alpha_bar, k, sample)
            alpha, sigma = bar.sqrt(), (1.0 - bar).sqrt()
            a, b = (self._at(values, k, sample) for values in self.config.target)
            determinant = alpha * b - sigma * a
            x_0 = (b * sample - sigma * output) / determinant
            clipped = x_0.clamp(-self.config.clip, self.config.clip)
            mean = mean + -coef_output * determinant / sigma * (clipped - x_0)
        noise = randn_tensor(
            sample.shape, generator=generator, device=sample.device, dtype=sample.dtype
        )
        previous = mean + self._at(self.config.std, k, sample) * noise
        if not self.config.asks_scale:
            previous = self._input_scale(k + 1, sample) * previous
        return FewStepSchedulerOutput(prev_sample=previous) if return_dict else (previous,)

    def _input_scale(self, k: int, like: Tensor) -> Tensor:
        """What latents before step k are multiplied by; those behind the last are samples."""
        scales = self.config.input_scale
        return self._at([1.0] if scales is None or k == len(scales) else scales[k:], 0, like)

    def _step_index(self, timestep: Tensor | float) -> int:
        time = torch.as_tensor(timestep, device=self.timesteps.device)
        matches = (self.timesteps == time).nonzero()
        if not len(matches):
            raise ValueError(f"timestep: {float(timestep)} is none of {self.timesteps.tolist()}")
        return int(matches[0])

    @staticmethod
    def _at(values: list[float], k: int, like: Tensor) -> Tensor:
        return torch.tensor(values[k], device=like.device, dtype=like.dtype)
