"""Does a sample show the class that was asked for?"""

from __future__ import annotations

from torch import Tensor

from sft_rl.data import Dataset
from sft_rl.data.images import ImageDataset
from sft_rl.data.latents import LatentDataset
from sft_rl.errors import UserError
from sft_rl.metrics.classifier import cached_classifier

SEED = 2
"""Of the classifier: another than the metrics', so that what learns by it is not measured by it."""
LOWEST = -8.0


class Agreement:
    """The log-probability, of a classifier of the data's labels, of the class asked for.

    A reward (``use: sft_rl.metrics.agreement:Agreement``). It ends at -8 nats, below which a
    sample that is no class at all would outweigh a batch.

    Args:
        data: Labelled images, which the classifier is trained on, or was: it is cached.

    Raises:
        UserError: If they have no labels.
    """

    wants, has_gradient, wants_data = "model", True, True

    def __init__(self, data: Dataset) -> None:
        if not isinstance(data, ImageDataset) or data.labels is None:
            raise UserError("reward: 'Agreement' reads labelled images, which the data are not")
        if isinstance(data, LatentDataset):
            raise UserError("reward: 'Agreement' reads pixels, but the samples are latents")
        self.classifier, _ = cached_classifier(data, seed=SEED)

    def __call__(self, x: Tensor, labels: Tensor) -> Tensor:
        """Score images (B, C, H, W) of -1..1 and their labels (B,), int64, shape (B,)."""
        self.classifier.to(x.device)
        scores = self.classifier(x).log_softmax(dim=1)
        own: Tensor = scores.gather(1, labels[:, None])[:, 0]
        return own.clamp_min(LOWEST)
