"""Critics: integral probability metrics between samples and data, and their Lipschitz control.

A critic scores real data *higher* than generated data; the reward of a final sample is its score.
"""

from __future__ import annotations

from sft_rl.config import Config
from sft_rl.critics.base import Critic
from sft_rl.critics.function import FunctionCritic
from sft_rl.critics.network import OBJECTIVES, NetworkCritic
from sft_rl.critics.witness import MMDCritic, SlicedWassersteinCritic
from sft_rl.errors import UserError, did_you_mean
from sft_rl.extensions import is_reference, load_class, load_object
from sft_rl.networks import critic_network

__all__ = ["Critic", "NetworkCritic", "build_critic"]


def build_critic(config: Config, shape: tuple[int, ...]) -> Critic:
    """Build the critic a configuration names, for samples of one shape.

    Raises:
        UserError: If there is none of that name.
    """
    if config.reward != "critic":
        if not is_reference(config.reward):
            raise UserError(
                f"reward: {config.reward!r} is unknown; use 'critic' or your own 'module:function'"
            )
        return FunctionCritic(load_object("reward", config.reward))
    objective = config.critic.objective
    if is_reference(objective):
        return load_class("critic.objective", objective, Critic)(config, shape)  # type: ignore[no-any-return]
    if objective in OBJECTIVES:
        return NetworkCritic(critic_network(config, shape), config.critic)
    if objective == "mmd":
        return MMDCritic(config.training.batch_size, shape)
    if objective == "sliced_wasserstein":
        return SlicedWassersteinCritic(
            config.training.batch_size, shape, num_projections=config.critic.num_projections
        )
    known = [*OBJECTIVES, "mmd", "sliced_wasserstein"]
    raise UserError(f"critic.objective: {objective!r} is unknown; {did_you_mean(objective, known)}")
