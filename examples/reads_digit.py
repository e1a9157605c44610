"""A reward of pictures with prompts: does a classifier read the digit that was asked for?

    sft-rl train images "reward.terms=[critic, {use: 'examples.reads_digit:ReadsDigit'}]" …

It goes with the pipeline, the pictures and the prompts of ``examples.glyph_pipeline``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from examples.glyph_pipeline import DIGITS, SIZE, pictures
from sft_rl.config import DataConfig
from sft_rl.data.image_files import LabelledImages
from sft_rl.data.images import PIXEL_MAX, image_dataset
from sft_rl.metrics.classifier import Classifier, cached_classifier


def reader(seed: int, *, num: int = 20_000) -> tuple[Classifier, float]:
    """A classifier of digits, trained now or cached, and its accuracy on held-out pictures.

    Args:
        seed: Of the pictures and of the weights: another seed reads independently.
        num: Pictures to learn from.
    """
    images, captions = pictures(num, stream=1000 + seed)
    labelled = LabelledImages(images.numpy(), captions.numpy() // 4, tuple(DIGITS))
    config = DataConfig(name="images", image_size=SIZE, channels=1)
    return cached_classifier(image_dataset(labelled, config, pixel_max=PIXEL_MAX), seed=seed)


class ReadsDigit:
    """The probability of the prompt's digit; its gradient goes through the autoencoder."""

    wants, has_gradient = "data", True

    def __init__(self) -> None:
        self.classifier, _ = reader(seed=0)

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        """Score pictures (B, 1, H, W) of 0 to 255, shape (B,)."""
        asked = torch.tensor([row["digit"] for row in metadata])[:, None]
        scores: Tensor = self.classifier(images / (PIXEL_MAX / 2) - 1)
        return scores.softmax(dim=1).gather(1, asked)[:, 0]
