"""Fine-tuning by a reward of one's own, as DDPO does, and what it costs.

    python -m examples.tutorial_own_reward

The first time it pretrains the model, as the other tutorial does.
"""

import sys

import numpy as np

import sft_rl
from examples.own_reward import near_circle


def main(*settings: str) -> None:
    """Fine-tune by a reward; print how near the samples come, and how far from the data."""
    # --8<-- [start:fine_tune]
    # No critic, no data: the last policy is the result, not the one nearest to the data.
    config = sft_rl.load_config(
        "swiss_roll",
        num_steps=10,
        overrides=["training.num_iterations=200", *settings],
    )
    result = sft_rl.fine_tune(config, reward=near_circle)
    # --8<-- [end:fine_tune]

    # --8<-- [start:look]
    history = result.history
    print(f"mean reward: {history.reward_mean.iloc[0]:.3f} -> {history.reward_mean.iloc[-1]:.3f}")
    points = result.sampler.sample(2000, seed=0)
    angles = np.histogram(np.arctan2(points[:, 1], points[:, 0]), bins=24)[0]
    print(f"directions with samples: {np.count_nonzero(angles)} of 24")
    before, after = (result.metrics[f"sliced_wasserstein_{w}"] for w in ("initial", "final"))
    print(f"distance to the data: {before:.4f} -> {after:.4f}")
    # --8<-- [end:look]


if __name__ == "__main__":
    main(*sys.argv[1:])
