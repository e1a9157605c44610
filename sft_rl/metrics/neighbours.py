"""What nearest neighbours tell of two sets: precision, recall and the two-sample test.

They see what a transport distance hardly does: whether samples lie *on* the data.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray
NEIGHBOURS = 5
MAX_TREE_DIM = 8
"""Beyond, a tree looks at nearly all points anyway and a matrix of distances is quicker."""
CHUNK, ENTRIES = 500, 2**23
"""Rows of a matrix of distances at once, and entries at most."""


def precision_recall(
    real: Array, generated: Array, *, neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """Precision and recall of generated points (Kynkäänniemi et al., 2019), (N, dim) each.

    A point is covered by a set if it lies no farther from one of its members than that member's
    k-th nearest in the set. Precision: share of generated points that the real ones cover;
    recall: share of real ones that the generated ones cover.
    """
    return _covered(generated, real, neighbours), _covered(real, generated, neighbours)


def two_sample(real: Array, generated: Array) -> tuple[float, float]:
    r"""Accuracy of the leave-one-out 1-nearest-neighbour test, and its standard error.

    Share of all points, (N, dim) of each kind, whose nearest other point is of their own kind
    (Lopez-Paz and Oquab, 2017). 0.5: nothing tells them apart; 1: everything does; towards 0:
    samples are copies of the real ones.

    The standard error is sqrt(a (1 - a) (1 + q) / 2N): two points that are each other's
    nearest, a share q of all, are right or wrong together.

    Raises:
        ValueError: If there are not as many of each.
    """
    if len(real) != len(generated):
        raise ValueError(f"the test needs equal numbers, got {len(real)} and {len(generated)}")
    points = np.concatenate([real, generated])
    index = np.arange(len(points))
    _, found = _nearest(points, points, 2)
    # Of a point that is there twice, the copy may come before itself.
    nearest = np.where(found[:, 0] == index, found[:, 1], found[:, 0])
    is_real = index < len(real)
    accuracy = float(np.mean(is_real == is_real[nearest]))
    mutual = float(np.mean(nearest[nearest] == index))
    variance = accuracy * (1.0 - accuracy) * (1.0 + mutual) / len(points)
    return accuracy, float(np.sqrt(variance))


def share_error(share: float, num: int) -> float:
    """Standard error of precision or recall, a share of `num` points.

    Binomial noise of the points that are counted, and as much again of the set that covers them;
    the scatter over independent draws agrees (docs/metrics.md).
    """
    return float(np.sqrt(2.0 * share * (1.0 - share) / num))


def _nearest(points: Array, members: Array, num: int) -> tuple[Array, Array]:
    """Distances of points (N, dim) to their nearest members, and which, both (N, num)."""
    if _suits_tree(members):
        from scipy.spatial import cKDTree

        distances, index = cKDTree(members).query(points, k=range(1, num + 1))
        return distances, index
    x, y = torch.from_numpy(points), torch.from_numpy(members)
    # One place for all: small results kept between large matrices would break memory to pieces.
    found = x.new_empty(len(x), num), torch.empty(len(x), num, dtype=torch.int64)
    for part, *own in zip(*(torch.split(a, _at_once(y)) for a in (x, *found)), strict=True):
        torch.topk(torch.cdist(part, y), num, dim=1, largest=False, out=tuple(own))
    distances, index = found
    return distances.numpy(), index.numpy()


def _covered(points: Array, members: Array, neighbours: int) -> float:
    """Share of points that lie in the neighbourhood of a member."""
    # The first neighbour of a member is itself.
    num = min(neighbours + 1, len(members))
    radii = _nearest(members, members, num)[0][:, -1]
    if _suits_tree(points):
        from scipy.spatial import cKDTree

        inside = np.zeros(len(points), dtype=bool)
        for hits in cKDTree(points).query_ball_point(members, radii):
            inside[hits] = True
        return float(inside.mean())
    x, y, radius = (torch.from_numpy(a) for a in (points, members, radii))
    covered = torch.empty(len(x), dtype=torch.bool)
    for part, own in zip(*(torch.split(a, _at_once(y)) for a in (x, covered)), strict=True):
        torch.any(torch.cdist(part, y) <= radius, dim=1, out=own)
    return covered.double().mean().item()


def _at_once(members: Tensor) -> int:
    return max(min(CHUNK, ENTRIES // len(members)), 1)


def _suits_tree(points: Array) -> bool:
    return int(points.shape[1]) <= MAX_TREE_DIM
