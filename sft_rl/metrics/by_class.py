"""What is measured of each class alone, or of each prompt: do samples show what was asked for?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy.spatial.distance import pdist
from torch import Tensor

from sft_rl.metrics.clip import clip_score
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.metrics.features import ClassifierFeatures
from sft_rl.policy import DenoisingPolicy
from sft_rl.seeding import generator
from sft_rl.types import Metrics

Rewards = Callable[[Tensor, Tensor], Mapping[str, Tensor]]
"""Scores of samples (B, *shape) in model units with their labels (B,), by the reward's name."""
MOST = 2000
"""Samples of all classes."""


def by_class(
    evaluator: Evaluator, policy: DenoisingPolicy, rewards: Rewards | None
) -> list[Metrics]:
    """Measure a policy's samples class by class, always on the same noise.

    Args:
        evaluator: Says by what, and of how many samples.
        policy: Draws them; of one without classes nothing is measured.
        rewards: What the run is rewarded by; None where the critic is all that counts.

    Returns:
        Of every class means, with standard errors (``NAME_se``) if there are several samples:
        ``agreement``, the share that the classifier whose features are compared takes for their
        class; ``clip_score``; ``term_NAME`` of every reward; and, without an error, ``diversity``,
        the mean Euclidean distance between two samples in CLIP's embeddings if there is one, else
        in the features that are compared.
    """
    num_classes, features = policy.num_classes, getattr(evaluator.measure, "features", [])[:1]
    if not num_classes or not (features or rewards or evaluator.clip):
        return []
    num = max(min(evaluator.config.num_samples, MOST) // num_classes, 1)
    labels = torch.arange(num_classes, device=policy.device).repeat_interleave(num)
    source = generator(evaluator.config.seed, "classes", device=policy.device)
    with torch.no_grad():
        samples = policy.sample(len(labels), source, labels)
    scores = rewards(samples, labels) if rewards else {}
    found = {f"term_{name}": score.cpu().numpy() for name, score in scores.items()}
    images, vectors = evaluator.data.units.to_data(samples), None
    for leading in features:
        vectors = leading(images)
        if isinstance(leading, ClassifierFeatures):
            found["agreement"] = leading.classes(images) == labels.cpu().numpy()
    prompts = evaluator.data.units.samples.prompts
    if evaluator.clip is not None and prompts is not None:
        vectors, asked = evaluator.clip(images, [prompts.texts[i] for i in labels.tolist()])
        found["clip_score"] = clip_score(vectors, asked)
    rows: list[Metrics] = [{} for _ in range(num_classes)]
    for name, values in found.items():
        of_each = values.astype(np.float64).reshape(num_classes, num)
        for row, own in zip(rows, of_each, strict=True):
            row[name] = own.mean().item()
            if num > 1:
                row[f"{name}_se"] = own.std().item() / math.sqrt(num)
    if vectors is not None and num > 1:
        for row, own in zip(rows, vectors.reshape(num_classes, num, -1), strict=True):
            row["diversity"] = pdist(own).mean().item()
    return rows


def over_classes(rows: list[Metrics]) -> Metrics:
    """Means over classes of all but rewards, with standard errors where classes have some."""
    means: Metrics = {}
    for name in (name for name in (rows[0] if rows else ()) if not name.startswith("term_")):
        values = np.array([row[name] for row in rows])
        is_error = name.endswith("_se")
        means[name] = math.hypot(*values) / len(rows) if is_error else values.mean().item()
    return means
