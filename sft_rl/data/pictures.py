"""Many images as one picture."""

import math

import numpy as np

Array = np.ndarray
NUM_IN_GRID, MIN_GRID_SIZE = 64, 256
LINE = (110, 130, 160)
"""Colour between images, RGB."""


def to_rgb(images: Array, low: float, high: float) -> Array:
    """Turn images (N, C, H, W) with values low..high into RGB, uint8, shape (N, H, W, 3)."""
    share = np.clip((images.astype(np.float32) - low) / (high - low), 0.0, 1.0)
    pixels = (share * 255).astype(np.uint8)[:, :3].transpose(0, 2, 3, 1)
    return np.broadcast_to(pixels, (*pixels.shape[:3], 3))


def tile(images: Array, columns: int) -> Array:
    """Lay RGB images (N, H, W, 3) side by side, row by row, with a line between them."""
    num, height, width = images.shape[:3]
    rows = -(-num // columns)
    cells = np.full((rows * columns, height + 1, width + 1, 3), LINE, np.uint8)
    cells[:num, :height, :width] = images
    grid = cells.reshape(rows, columns, height + 1, width + 1, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * (height + 1), columns * (width + 1), 3)[:-1, :-1]


def sample_grid(images: Array, pixel_max: int) -> Array:
    """Lay the first 64 images (N, C, H, W) into a square, so large that it can be seen.

    Args:
        images: Pixel values 0..pixel_max.
        pixel_max: Value of a white pixel.

    Returns:
        RGB picture, uint8, shape (height, width, 3).
    """
    shown = to_rgb(images[:NUM_IN_GRID], 0, pixel_max)
    grid = tile(shown, columns=math.isqrt(NUM_IN_GRID))
    zoom = math.ceil(MIN_GRID_SIZE / grid.shape[1])
    return grid.repeat(zoom, axis=0).repeat(zoom, axis=1)
