"""A class-conditional few-step sampler as a pipeline of diffusers, whose own takes no labels.

This file needs torch and diffusers only: an exported pipeline takes a copy of it along.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, SchedulerMixin, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class ClassConditionalPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Draws images of given classes.

    Args:
        unet: Predicts noise or v, conditional on one of ``num_class_embeds`` classes.
        scheduler: The few denoising steps.
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | None = None,
        class_labels: int | Sequence[int] | Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[object]:
        """Draw images.

        Args:
            batch_size: How many.
            generator: Source of noise, and before it of labels.
            class_labels: One class for all images, or one for each; None draws them.
            output_type: ``pil``; ``np`` for (B, H, W, C) or ``pt`` for (B, C, H, W) of 0..1.
            return_dict: Return an object with ``images``; else a tuple.

        Raises:
            ValueError: If the labels are not as many, or not classes of the model.
        """
        device, config = self._execution_device, self.unet.config
        labels = self._labels(batch_size, class_labels, generator).to(device)
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (batch_size, config.in_channels, height, width)
        image = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        self.scheduler.set_timesteps(device=device)
        for t in self.progress_bar(self.scheduler.timesteps):
            output = self.unet(image, t, class_labels=labels).sample
            image = self.scheduler.step(output, t, image, generator=generator).prev_sample
        image = (image / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            image = image.cpu().permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            image = self.numpy_to_pil(image)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=image) if return_dict else (image,)

    def _labels(
        self,
        num: int,
        given: int | Sequence[int] | Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        num_classes = self.unet.config.num_class_embeds
        if given is None:
            device = "cpu" if generator is None else generator.device
            return torch.randint(num_classes, (num,), generator=generator, device=device)
        labels = torch.full((num,), given) if isinstance(given, int) else torch.as_tensor(given)
        if labels.shape != (num,) or labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(
                f"class_labels: expected {num} of 0 to {num_classes - 1}, got {labels.tolist()}"
            )
        return labels
