"""A small classifier of labelled images, whose features images are compared in."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sft_rl.data.images import ImageDataset
from sft_rl.data.units import Units
from sft_rl.seeding import derive_seed, generator, num_threads
from sft_rl.storage.cache import Key, arithmetic, cached, digest
from sft_rl.storage.checkpoint import Checkpoint

Array = np.ndarray
NUM_FEATURES = 32
WIDTH = 24
NUM_ITERATIONS = 800
BATCH_SIZE = 128
LEARNING_RATE = 3e-3
COARSEST = 2
CHUNK = 1000
FORMAT = 2


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
    def classes_of(self, images: Tensor, units: Units) -> Array:
        """The class that it takes each of the images for, int64, shape (N,).

        Args:
            images: In pixel values, uint8, shape (N, C, H, W).
            units: Turn a few at once into what it sees.
        """
        parts = torch.split(images, CHUNK)
        return torch.cat([self(units.to_model(part)).argmax(1) for part in parts]).numpy()

    @torch.inference_mode()
    def embed(self, images: Tensor, units: Units) -> Array:
        """Features of images, float64, shape (N, 32); arguments as of :meth:`classes_of`.

        Scaled so that their variance over the training images is 1 on average.
        """
        parts = torch.split(images, CHUNK)
        found = [self.features(self.tower(units.to_model(part))) for part in parts]
        return (torch.cat(found) / self.spread).double().numpy()


def classifier_key(data: ImageDataset, seed: int = 0) -> Key:
    """All that determines the classifier of some data and its accuracy.

    It is trained on the CPU, by one thread whatever the settings say: a yardstick for every run.
    """
    assert data.held_out is not None
    assert data.labels is not None and data.held_out_labels is not None, "labels are needed"
    images, held_out = (data.train, data.labels), (data.held_out, data.held_out_labels)
    with num_threads(1):
        return {
            "format": FORMAT,
            "data": digest(*(np.asarray(array) for array in (*images, *held_out))),
            "pixel_max": data.pixel_max,
            "seed": seed,
            "sizes": [WIDTH, NUM_FEATURES, NUM_ITERATIONS, BATCH_SIZE, LEARNING_RATE],
            **arithmetic(torch.device("cpu")),
        }


def cached_classifier(data: ImageDataset, *, seed: int = 0) -> tuple[Classifier, float]:
    """Return the classifier of some data, from the cache or trained now.

    Returns:
        The classifier and its accuracy on held-out images.
    """
    assert data.labels is not None, "labels are needed"
    labels, num_classes = data.labels, int(data.labels.max()) + 1

    def train() -> Checkpoint:
        with num_threads(1):
            trained = _train(data, labels, num_classes, seed)
            accuracy = _accuracy(trained, data)
        return Checkpoint({"classifier": trained.state_dict()}, {"accuracy": accuracy})

    entry, _ = cached("classifier", classifier_key(data, seed), train)
    classifier = Classifier(data.picture_shape, num_classes).eval().requires_grad_(False)
    classifier.load_state_dict(entry.tensors["classifier"])
    return classifier, entry.meta["accuracy"]


@torch.inference_mode()
def _accuracy(classifier: Classifier, data: ImageDataset) -> float:
    """Share of the held-out images that it names rightly."""
    assert data.held_out is not None and data.held_out_labels is not None, "labels are needed"
    guesses = classifier.classes_of(torch.from_numpy(data.held_out), data.units)
    return float((guesses == data.held_out_labels.numpy()).mean())


def _train(data: ImageDataset, labels: Tensor, num_classes: int, seed: int) -> Classifier:
    """Train on training images, shifted by up to a pixel and with a little noise."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "classifier weights"))
        classifier = Classifier(data.picture_shape, num_classes)
    source = generator(seed, "classifier")
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    height, width = data.picture_shape[1:]
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
    features = classifier.embed(data.train[:10_000], data.units)
    classifier.spread.fill_(float(np.sqrt(features.var(axis=0).mean())))
    return classifier
