"""What scores final samples: the critic and rewards of the user's own, as one weighted sum."""

from sft_rl.rewards.build import OwnReward, Remote, build_objective, handed_over
from sft_rl.rewards.objective import Objective, Term
from sft_rl.rewards.reward import Reward

__all__ = [
    "Objective",
    "OwnReward",
    "Remote",
    "Reward",
    "Term",
    "build_objective",
    "handed_over",
]
