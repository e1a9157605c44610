"""Points of two synthetic sources, those of scikit-learn."""

import numpy as np

Array = np.ndarray


def draw_points(name: str, num: int, noise: float, seed: int) -> Array:
    """Draw points of a synthetic source, float32, shape (num, 2).

    ``swiss_roll`` is the paper's: scikit-learn's coordinates 0 and 2, divided by 20.
    """
    if name == "swiss_roll":
        points = _swiss_roll(num, noise, seed)[:, [0, 2]] / 20.0
    else:
        from sklearn.datasets import make_moons

        points = make_moons(num, noise=noise, random_state=seed)[0]
    return np.asarray(points, dtype=np.float32)


def _swiss_roll(num: int, noise: float, seed: int) -> Array:
    """scikit-learn's ``make_swiss_roll``, to the bit, without the 1.5 s that its import takes.

    Every command and process of the main job would pay them. Shape (num, 3).
    """
    source = np.random.RandomState(seed)
    t = 1.5 * np.pi * (1.0 + 2.0 * source.uniform(size=num))
    height = 21.0 * source.uniform(size=num)
    points = np.vstack((t * np.cos(t), height, t * np.sin(t)))
    return np.asarray((points + noise * source.standard_normal(size=(3, num))).T)
