"""Critics: integral probability metrics between samples and data, and their Lipschitz control.

A critic scores real data *higher* than generated data; the reward of a final sample is its score.
"""

from __future__ import annotations

from sft_rl.config import Config
from sft_rl.critics.base import Critic
from sft_rl.critics.network import NetworkCritic
from sft_rl.networks import critic_network

__all__ = ["Critic", "NetworkCritic", "build_critic"]


def build_critic(config: Config, shape: tuple[int, ...]) -> Critic:
    """Build the critic a configuration names, for samples of one shape."""
    return NetworkCritic(critic_network(config, shape), config.critic)
