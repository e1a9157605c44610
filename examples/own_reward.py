"""A reward of one's own in the critic's place.

Run it from the repository's root:

    sft-rl train swiss_roll reward=examples.own_reward:near_circle
"""

from torch import Tensor

from sft_rl import reward


@reward(has_gradient=True)
def near_circle(samples: Tensor) -> Tensor:
    """Score points (B, 2), in model units, by how near the unit circle they lie; shape (B,)."""
    return -(samples.square().sum(dim=1).sqrt() - 1.0).square()
