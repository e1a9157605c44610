"""Many images as one picture."""

import math

import numpy as np

Array = np.ndarray
NUM_IN_GRID, MIN_GRID_SIZE = 64, 256


def to_rgb(images: Array, low: float, high: float) -> Array:
    """Turn images (N, C, H, W) with values low..high into RGB, uint8, shape (N, H, W, 3)."""
    share = np.clip((images.astype(np.float32) - low) / (high - low), 0.0, 1.0)
    pixels = (share * 255).astype(np.uint8)[:, :3].transpose(0, 2, 3, 1)
    return np.broadcast_to(pixels, (*pixels.shape[:3], 3))


def tile(images: Array, columns: int) -> Array:
    """Lay RGB images (N, H, W, 3) side by side, row by row; missing ones are black."""
    num, height, width = images.shape[:3]
    rows = -(-num // columns)
    grid = np.zeros((rows, columns, height, width, 3), np.uint8)
    grid.reshape(-1, height, width, 3)[:num] = images
    return grid.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)


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
