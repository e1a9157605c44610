"""From a configuration to a sampler of four steps, and a look at its samples.

    python -m examples.tutorial_swiss_roll

About a minute on two cores that have nothing else to do, the pretraining included.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np

import sft_rl


def main(*settings: str) -> None:
    """Fine-tune, print what it gave, draw the samples; settings are ``key=value``."""
    # --8<-- [start:configuration]
    config = sft_rl.load_config("swiss_roll", num_steps=4, overrides=settings)
    print(f"{config.sampler.num_steps} steps, {config.training.num_iterations} iterations")
    # --8<-- [end:configuration]

    # --8<-- [start:fine_tune]
    result = sft_rl.fine_tune(config)
    before, after = result.metrics["before"], result.metrics["final"]
    for name, words in (("excess", "distance to held-out data"), ("two_sample", "told apart")):
        print(f"{words}: {before[name]:.4f} -> {after[name]:.4f} ± {after[f'{name}_se']:.4f}")
    print(f"everything is in {result.folder}")
    # --8<-- [end:fine_tune]

    # --8<-- [start:look]
    samples = result.sampler.sample(2000, seed=0)
    assert samples.shape == (2000, 2) and np.isfinite(samples).all()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
    left.scatter(*samples.T, s=2)
    left.set(title="samples of four steps", aspect="equal")
    evaluated = result.history.dropna(subset="sliced_wasserstein")
    evaluated.plot(x="iteration", y=["two_sample", "sliced_wasserstein"], ax=right, logy=True)
    right.set_title("against training data while it learns")
    figure.savefig("tutorial_swiss_roll.png")
    # --8<-- [end:look]

    # --8<-- [start:again]
    sampler = sft_rl.load_sampler(result.folder)
    assert np.array_equal(sampler.sample(2000, seed=0), samples)
    # --8<-- [end:again]


if __name__ == "__main__":
    main(*sys.argv[1:])
