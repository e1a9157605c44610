"""Pictures of latents as they are denoised, by plain array work: fast enough for a video."""

import numpy as np
from torch import Tensor

from sft_rl.data.pictures import tile, to_rgb

SIZE = 256
RANGE = 3.0
"""Points are drawn within this many standard deviations of the data."""


def draw_latents(latents: Tensor) -> np.ndarray:
    """Draw a batch of latents: points as a density, images as a grid.

    Args:
        latents: Shape (B, dim) or (B, channels, height, width), model units.

    Returns:
        RGB picture, uint8, shape (height, width, 3).
    """
    array = latents.detach().cpu().numpy()
    return _draw_points(array) if array.ndim == 2 else _draw_images(array)


def _draw_points(points: np.ndarray) -> np.ndarray:
    x = points[:, 0]
    y = points[:, 1] if points.shape[1] > 1 else np.zeros_like(x)
    edges = np.linspace(-RANGE, RANGE, SIZE + 1)
    counts, _, _ = np.histogram2d(-y, x, bins=(edges, edges))
    if len(points) < 100:  # thicken single points so that they can be seen
        padded = np.pad(counts, 2)
        window = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
        counts = window.sum(axis=(2, 3))
    ink = np.clip(counts / max(1.0, len(points) / 2000), 0.0, 1.0)[..., None]
    paper, blue = np.array([255.0, 255.0, 255.0]), np.array([42.0, 111.0, 151.0])
    return np.asarray(paper * (1.0 - ink) + blue * ink, dtype=np.uint8)


def _draw_images(images: np.ndarray) -> np.ndarray:
    shown = images[:64]
    return tile(to_rgb(shown, -1.0, 1.0), columns=int(np.ceil(np.sqrt(len(shown)))))
