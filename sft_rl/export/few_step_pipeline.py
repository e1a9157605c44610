"""A few-step sampler as a pipeline of diffusers, of classes or not.

This file needs torch and diffusers only: a saved pipeline takes a copy of it along.
"""

from __future__ import annotations

import inspect
import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

Generators = torch.Generator | list[torch.Generator] | None


class FewStepPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Draws images in the few steps that its scheduler holds.

    Args:
        unet: The denoising network, a U-Net or a transformer.
        scheduler: The few denoising steps.
        num_classes: Classes that it is conditional on; None for none.
    """

    model_cpu_offload_seq = "unet"

    def __init__(
        self, unet: ModelMixin, scheduler: SchedulerMixin, num_classes: int | None = None
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(num_classes=num_classes)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        class_labels: int | Sequence[int] | Tensor | None = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[object]:
        """Draw images.

        Args:
            batch_size: How many.
            generator: Source of noise, and before it of labels: one, or one for each image.
            class_labels: One class for all images, or one for each; None draws them.
            num_inference_steps: Ignored, with a warning: the steps are those it was tuned for.
            output_type: ``pil``; ``np`` for (B, H, W, C) or ``pt`` for (B, C, H, W) of 0..1.
            return_dict: Return an object with ``images``; else a tuple.

        Raises:
            ValueError: If the labels are not as many, or not classes of the model.
        """
        if num_inference_steps not in (None, len(self.scheduler)):
            warnings.warn(
                f"num_inference_steps={num_inference_steps} is ignored: this pipeline was tuned "
                f"for {len(self.scheduler)} steps",
                stacklevel=2,
            )
        device, config = self._execution_device, self.unet.config
        labels = self._labels(batch_size, class_labels, generator)
        given = {} if labels is None else {"class_labels": labels.to(device)}
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (batch_size, config.in_channels, height, width)
        image = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        self.scheduler.set_timesteps(device=device)
        for t in self.progress_bar(self.scheduler.timesteps):
            scaled = self.scheduler.scale_model_input(image, t)
            output = self.unet(scaled, t.expand(batch_size), **given).sample
            image = self.scheduler.step(output, t, image, generator=generator).prev_sample
        image = (image / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            image = image.cpu().float().permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            image = self.numpy_to_pil(image)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=image) if return_dict else (image,)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Save the pipeline with its code, so that a copy of a copy loads without this package."""
        super().save_pretrained(save_directory, **options)
        folder = Path(save_directory)
        file = folder / "model_index.json"
        index = json.loads(file.read_text())
        for key, kind, place in (
            ("_class_name", type(self), folder),
            ("scheduler", type(self.scheduler), folder / "scheduler"),
        ):
            code = Path(inspect.getfile(kind))
            index[key] = [code.stem, kind.__name__]
            shutil.copyfile(code, place / code.name)
        file.write_text(json.dumps(index, indent=2) + "\n")

    def _labels(
        self,
        num: int,
        given: int | Sequence[int] | Tensor | None,
        generator: Generators,
    ) -> Tensor | None:
        num_classes = self.config.num_classes
        if num_classes is None:
            if given is not None:
                raise ValueError(f"class_labels: the model has no classes, got {given}")
            return None
        if given is None:
            if isinstance(generator, list):
                return torch.cat([_drawn(num_classes, 1, source) for source in generator])
            return _drawn(num_classes, num, generator)
        labels = torch.full((num,), given) if isinstance(given, int) else torch.as_tensor(given)
        if labels.shape != (num,) or labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(
                f"class_labels: expected {num} of 0 to {num_classes - 1}, got {labels.tolist()}"
            )
        return labels


def _drawn(num_classes: int, num: int, generator: torch.Generator | None) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return torch.randint(num_classes, (num,), generator=generator, device=device)
