"""The swiss roll with its angle as condition: a model of points that are given some of a table.

    python -m examples.conditional_roll            # makes the table, fine-tunes to four steps

The table has columns x, y and angle. The sampler draws (x, y) for any angle, so that what it has
learned shows at once: a point lies at (angle cos angle, angle sin angle) / 20, but for the noise.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

import sft_rl

NOISE = 0.05
"""scikit-learn's noise of the roll, before the division by 20."""
ANGLES = (5.0, 7.5, 10.0, 13.0)


def curve(angle: np.ndarray) -> np.ndarray:
    """Where the middle of the roll is, shape (N, 2)."""
    return np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=1) / 20.0


def table(num: int) -> pd.DataFrame:
    """Draw points with their angles."""
    source = np.random.default_rng(0)
    angle = 1.5 * np.pi * (1.0 + 2.0 * source.uniform(size=num))
    points = curve(angle) + NOISE / 20.0 * source.standard_normal((num, 2))
    return pd.DataFrame({"x": points[:, 0], "y": points[:, 1], "angle": angle})


def main(*settings: str, num: int = 100_000) -> None:
    """Fine-tune; print how far samples lie from where their angle says."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "roll.parquet")
        table(num).to_parquet(file)
        given = [f"data.path={file}", "data.condition_columns=[angle]", "sampler.num_steps=4"]
        result = sft_rl.fine_tune(sft_rl.load_config("swiss_roll", [*given, *settings]))
    for name in ("two_sample", "precision", "recall"):
        before, after = result.metrics["before"][name], result.metrics["final"][name]
        print(f"{name}: {before:.3f} -> {after:.3f}")
    sampler = sft_rl.load_sampler(result.folder)
    for angle in ANGLES:
        points = sampler.sample(2000, condition=[angle])
        off = points - curve(np.array([angle]))
        far = (np.linalg.norm(off, axis=1) > 4.0 * NOISE / 20.0).mean()
        rms = np.sqrt((off**2).mean()) / (NOISE / 20.0)
        print(f"angle {angle:g}: root mean square {rms:.2f} of the noise, {far:.1%} beyond 4 of it")


if __name__ == "__main__":
    main(*sys.argv[1:])
