"""Critics: integral probability metrics between samples and data, and their Lipschitz control.

A critic scores real data *higher* than generated data; the reward of a final sample is its score.
"""

from __future__ import annotations

from collections.abc import Callable

from sft_rl.config import Config
from sft_rl.config.extensions import is_reference, load_class, load_object
from sft_rl.critics.base import Critic
from sft_rl.critics.function import FunctionCritic
from sft_rl.critics.network import OBJECTIVES, NetworkCritic
from sft_rl.critics.witness import MMDCritic, SlicedWassersteinCritic
from sft_rl.errors import UserError, did_you_mean
from sft_rl.networks import critic_network

__all__ = ["Critic", "NetworkCritic", "build_critic", "critic_builder"]


WITNESSES = ("mmd", "sliced_wasserstein")


def build_critic(config: Config, shape: tuple[int, ...]) -> Critic:
    """Build the critic a configuration names, for samples of one shape."""
    return critic_builder(config)(shape)


def critic_builder(config: Config) -> Callable[[tuple[int, ...]], Critic]:
    """Find the critic a configuration names; what is returned builds it for a shape.

    Raises:
        UserError: If there is none of that name, or it does not look at the model's labels.
    """
    options, batch_size = config.critic, config.training.batch_size
    if config.reward != "critic":
        if not is_reference(config.reward):
            raise UserError(
                f"reward: {config.reward!r} is unknown; use 'critic' or your own 'module:function'"
            )
        function = load_object("reward", config.reward)
        return lambda shape: FunctionCritic(function)
    if is_reference(options.objective):
        own = load_class("critic.objective", options.objective, Critic)
        return lambda shape: own(config, shape)
    if options.objective in OBJECTIVES:
        return lambda shape: NetworkCritic(critic_network(config, shape), options)
    if options.objective in WITNESSES and config.model.num_classes:
        raise UserError(
            f"critic.objective: {options.objective!r} does not look at the labels of a "
            f"class-conditional model; use {', '.join(OBJECTIVES)}"
        )
    if options.objective == "mmd":
        return lambda shape: MMDCritic(batch_size, shape)
    if options.objective == "sliced_wasserstein":
        return lambda shape: SlicedWassersteinCritic(
            batch_size, shape, num_projections=options.num_projections
        )
    known = [*OBJECTIVES, *WITNESSES]
    hint = did_you_mean(options.objective, known)
    raise UserError(f"critic.objective: {options.objective!r} is unknown; {hint}")
