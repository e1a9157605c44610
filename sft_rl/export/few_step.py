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

    Step k draws ``coef_x[k] * x + coef_eps[k] * eps + std[k] * noise``.

    Args:
        timesteps: The model's time at each step, decreasing, may be fractional.
        coef_x: Coefficient of the latent at each step.
        coef_eps: Coefficient of the predicted noise at each step.
        std: Standard deviation of the noise added at each step.
        alpha_bars: alpha_bar at each step, for a model that predicts v.
        prediction_type: ``epsilon`` or ``v_prediction``.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        timesteps: list[float],
        coef_x: list[float],
        coef_eps: list[float],
        std: list[float],
        alpha_bars: list[float] | None = None,
        prediction_type: str = "epsilon",
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

    def scale_model_input(self, sample: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return the latents as they are."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> FewStepSchedulerOutput | tuple[Tensor]:
        """Take one step.

        Args:
            model_output: The predicted noise or v, shape (B, C, H, W).
            timestep: One of ``timesteps``.
            sample: The latents, shape (B, C, H, W).
            generator: Source of the noise.
            return_dict: Return an object; else a tuple.

        Raises:
            ValueError: If the timestep is none of the schedule's.
        """
        matches = (
            self.timesteps == torch.as_tensor(timestep, device=self.timesteps.device)
        ).nonzero()
        if not len(matches):
            raise ValueError(f"timestep: {float(timestep)} is none of {self.timesteps.tolist()}")
        k = int(matches[0])

        def at(values: list[float]) -> Tensor:
            return torch.tensor(values[k], device=sample.device, dtype=sample.dtype)

        eps = model_output
        if self.config.prediction_type == "v_prediction":
            bar = at(self.config.alpha_bars)
            eps = bar.sqrt() * model_output + (1.0 - bar).sqrt() * sample
        mean = at(self.config.coef_x) * sample + at(self.config.coef_eps) * eps
        noise = randn_tensor(
            sample.shape, generator=generator, device=sample.device, dtype=sample.dtype
        )
        previous = mean + at(self.config.std) * noise
        return FewStepSchedulerOutput(prev_sample=previous) if return_dict else (previous,)
