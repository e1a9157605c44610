"""Pictures as latents of an autoencoder, which a model of latents sees."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sft_rl.data.images import ImageDataset


@dataclass(frozen=True, kw_only=True)
class LatentDataset(ImageDataset):
    """Pictures with captions, of which the model sees latents.

    Attributes:
        train: The training pictures themselves, uint8, shape (N, C, H, W).
        latents: Their latents in model units, float32, shape (N, *shape).
        labels: The number of each one's caption, int64, shape (N,).
    """

    latents: Tensor

    def as_seen(self, index: Tensor) -> Tensor:
        """Latents of some training pictures."""
        return self.latents[index.to(self.latents.device)].to(index.device)
