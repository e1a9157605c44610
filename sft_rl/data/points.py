"""Points: two synthetic sources, those of scikit-learn, and a user's own files."""

from pathlib import Path

import numpy as np

from sft_rl.errors import UserError

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


def read_points(path: str) -> Array:
    """Read a table of numbers, one point a row, float32, shape (num, dim).

    Raises:
        UserError: If the file is missing, unreadable, empty, not finite or not a table.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"data.path: no file at {path}")
    try:
        points = np.asarray(_read(file))
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes its parser raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"data.path: cannot read {path}: {reason[0]}") from error
    return checked_points(points, f"data.path: {path}")


def checked_points(points: Array, source: str) -> Array:
    """Refuse what is no table of numbers; return it as float32, shape (num, dim).

    Raises:
        UserError: Naming its source and what is wrong.
    """
    if points.ndim != 2 or 0 in points.shape:
        raise UserError(
            f"{source} has shape {points.shape}, expected (rows, dimensions), not empty"
        )
    if not np.issubdtype(points.dtype, np.number) or np.iscomplexobj(points):
        raise UserError(f"{source} holds {points.dtype}, expected real numbers")
    points = points.astype(np.float32)
    bad = ~np.isfinite(points)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise UserError(
            f"{source} has {bad.sum()} values that are not finite, "
            f"the first in row {row}, column {column}"
        )
    return points


def _read(file: Path) -> object:
    if file.suffix == ".npy":
        return np.load(file, allow_pickle=False)
    import pandas as pd  # here, since it is slow to import

    if file.suffix == ".csv":
        first = pd.read_csv(file, header=None, nrows=1)
        numeric = all(pd.api.types.is_numeric_dtype(kind) for kind in first.dtypes)
        return pd.read_csv(file, header=None if numeric else 0)
    if file.suffix == ".parquet":
        return pd.read_parquet(file)
    raise UserError(f"data.path: {file} ends in {file.suffix!r}, expected .npy, .csv or .parquet")
