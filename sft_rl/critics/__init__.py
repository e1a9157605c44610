"""Integral probability metrics: what scores final samples, and what keeps it Lipschitz."""

from __future__ import annotations

from sft_rl.config import CriticConfig
from sft_rl.config.extensions import is_reference, load_class, own_options
from sft_rl.critics.base import Critic
from sft_rl.critics.network import OBJECTIVES, NetworkCritic
from sft_rl.critics.several import Several
from sft_rl.critics.witness import MMDCritic, SlicedWassersteinCritic
from sft_rl.errors import UserError, did_you_mean
from sft_rl.networks import critic_network

__all__ = [
    "Critic",
    "NetworkCritic",
    "build_critic",
    "check_objective",
]


WITNESSES = ("mmd", "sliced_wasserstein")


def check_objective(name: str, *, is_conditional: bool) -> None:
    """Refuse a critic that there is not, or that does not look at the model's condition.

    Raises:
        UserError: Naming those there are.
    """
    if is_reference(name):
        load_class("critic.objective", name, Critic)
    elif name not in (*OBJECTIVES, *WITNESSES):
        hint = did_you_mean(name, [*OBJECTIVES, *WITNESSES])
        raise UserError(f"critic.objective: {name!r} is unknown; {hint}")
    elif name in WITNESSES and is_conditional:
        raise UserError(
            f"critic.objective: {name!r} does not look at the labels or vectors of a conditional "
            f"model; use {', '.join(OBJECTIVES)}"
        )


def build_critic(
    options: CriticConfig,
    shape: tuple[int, ...],
    *,
    batch_size: int,
    num_classes: int,
    num_conditions: int = 0,
    prompt_width: int = 0,
    own: dict[str, object] | None = None,
) -> Critic:
    """Build the critic of a name, for samples of one shape.

    Args:
        options: Its objective, network and regulariser.
        shape: Shape of one sample.
        batch_size: Samples of a critic step.
        num_classes: Classes of the model; 0 for none.
        num_conditions: Numbers of the vectors that the model is conditional on; 0 for none.
        prompt_width: Numbers of a token, if the classes are prompts; 0 if not.
        own: Options of users' own classes, of which a user's critic takes its own.

    Raises:
        UserError: As :func:`check_objective`, or if its network takes no samples of that shape.
    """
    name = options.objective
    check_objective(name, is_conditional=bool(num_classes or num_conditions))
    if options.factory is not None and name not in OBJECTIVES:
        raise UserError(
            f"critic.factory: critic.objective={name} takes no network from outside; use "
            f"{', '.join(OBJECTIVES)}"
        )
    if name in WITNESSES and options.num_networks > 1:
        raise UserError(f"critic.num_networks: critic.objective={name} has no network")
    if name == "mmd":
        return MMDCritic(batch_size, shape)
    if name == "sliced_wasserstein":
        return SlicedWassersteinCritic(batch_size, shape, num_projections=options.num_projections)

    def one() -> Critic:
        if is_reference(name):
            kind = load_class("critic.objective", name, Critic)
            return kind(own_options(kind, own or {}), shape)  # type: ignore[no-any-return]
        network = critic_network(
            options,
            shape,
            num_classes=num_classes,
            num_conditions=num_conditions,
            prompt_width=prompt_width,
        )
        return NetworkCritic(network, options)

    critics = [one() for _ in range(options.num_networks)]
    return critics[0] if len(critics) == 1 else Several(critics)
