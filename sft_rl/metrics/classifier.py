"""A small classifier of labelled images, whose features images are compared in."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sft_rl.data.images import ImageDataset
from sft_rl.seeding import derive_seed, generator
from sft_rl.storage.cache import cache_folder
from sft_rl.storage.checkpoint import Checkpoint, DamagedCheckpoint, load, save

Array = np.ndarray
NUM_FEATURES = 32
WIDTH = 24
NUM_ITERATIONS = 800
BATCH_SIZE = 128
LEARNING_RATE = 3e-3
COARSEST = 2
CHUNK = 1000
FORMAT = 1


class Classifier(nn.Module):
    """Convolutions of stride 2 down to 2x2 pixels, a layer of features, a layer of classes.

    Args:
        shape: Shape of one image.
        num_classes: Number of labels.
    """

    spread: Tensor

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        channels, size, width = shape[0], max(shape[1:]), WIDTH
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.SiLU()]
        while size > COARSEST:
            wider = min(2 * width, 8 * WIDTH)
            layers += [nn.Conv2d(width, wider, 3, stride=2, padding=1), nn.SiLU()]
            size, width = (size + 1) // 2, wider
        self.tower = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(COARSEST), nn.Flatten())
        self.features = nn.Linear(width * COARSEST**2, NUM_FEATURES)
        self.classes = nn.Linear(NUM_FEATURES, num_classes)
        self.register_buffer("spread", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) of -1..1 to class scores (B, classes)."""
        return self.classes(F.silu(self.features(self.tower(images))))  # type: ignore[no-any-return]

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Array:
        """Features of images (N, C, H, W) of -1..1, float64, shape (N, 32).

        Scaled so that their variance over the training images is 1 on average.
        """
        parts = [self.features(self.tower(part)) for part in torch.split(images, CHUNK)]
        return (torch.cat(parts) / self.spread).double().numpy()


def classifier_key(data: ImageDataset, seed: int = 0) -> str:
    """Hash of all that determines the classifier of some data."""
    parts = {
        "format": FORMAT,
        "data": data.fingerprint,
        "seed": seed,
        "sizes": [WIDTH, NUM_FEATURES, NUM_ITERATIONS, BATCH_SIZE, LEARNING_RATE],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def cached_classifier(data: ImageDataset, *, seed: int = 0) -> tuple[Classifier, float]:
    """Return the classifier of some data, from the cache or trained now.

    Returns:
        The classifier and its accuracy on held-out images.
    """
    assert data.held_out is not None
    assert data.labels is not None and data.held_out_labels is not None, "labels are needed"
    num_classes = int(data.labels.max()) + 1
    folder = cache_folder() / "classifier" / classifier_key(data, seed)
    if folder.exists():
        try:
            saved = load(folder)
            classifier = Classifier(data.shape, num_classes)
            classifier.load_state_dict(saved.tensors["classifier"])
            return classifier, saved.meta["accuracy"]
        except DamagedCheckpoint:
            pass  # trained again
    classifier = _train(data, data.labels, num_classes, seed)
    held_out = data.units.to_model(torch.from_numpy(data.held_out))
    with torch.inference_mode():
        guesses = torch.cat([classifier(part).argmax(1) for part in torch.split(held_out, CHUNK)])
    accuracy = torch.eq(guesses, data.held_out_labels).double().mean().item()
    save(folder, Checkpoint({"classifier": classifier.state_dict()}, {"accuracy": accuracy}))
    return classifier, accuracy


def _train(data: ImageDataset, labels: Tensor, num_classes: int, seed: int) -> Classifier:
    """Train on training images, shifted by up to a pixel and with a little noise."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "classifier weights"))
        classifier = Classifier(data.shape, num_classes)
    source = generator(seed, "classifier")
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    height, width = data.shape[1:]
    for iteration in range(NUM_ITERATIONS):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1.0 - iteration / NUM_ITERATIONS)
        index = torch.randint(len(labels), (BATCH_SIZE,), generator=source)
        images = F.pad(data.units.to_model(data.train[index]), (1, 1, 1, 1), value=-1.0)
        top, left = torch.randint(3, (2,), generator=source).tolist()
        images = images[:, :, top : top + height, left : left + width]
        images = images + 0.1 * torch.randn(images.shape, generator=source)
        loss = F.cross_entropy(classifier(images), labels[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    classifier.eval().requires_grad_(False)
    features = classifier.embed(data.units.to_model(data.train[:10_000]))
    classifier.spread.fill_(float(np.sqrt(features.var(axis=0).mean())))
    return classifier
