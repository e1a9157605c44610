"""What an env pays: a run's critic, one that it trains itself, rewards, or a weighted sum."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from envs.adversarial import AdversarialReward
from sft_rl.config import CRITIC, ResolvedConfig
from sft_rl.data import Dataset
from sft_rl.data.units import Units
from sft_rl.errors import UserError, did_you_mean
from sft_rl.policy import DenoisingPolicy
from sft_rl.rewards import Objective, OwnReward, build_objective, handed_over
from sft_rl.runs.parts import seeded_critic
from sft_rl.storage.checkpoint import TensorGroups
from sft_rl.storage.state import load_kept_state

ADVERSARIAL = "adversarial"
OPTIONS_OF_ADVERSARIAL = tuple(inspect.signature(AdversarialReward).parameters)[3:]


@dataclass(frozen=True)
class Source:
    """Where a sampler comes from.

    Attributes:
        config: Its settings.
        policy: The sampler.
        load_data: Loads its data; a run's are not needed but for an adversarial reward.
        trained: The tensors of a run, of which its critic takes its own, or None.
    """

    config: ResolvedConfig
    policy: DenoisingPolicy
    load_data: Callable[[], Dataset]
    trained: TensorGroups | None = None


class MixedReward:
    """Pays the weighted sum of several rewards.

    Args:
        objective: The terms; all score each sample once.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = Objective([replace(t, has_gradient=False) for t in objective.terms])

    def __call__(self, samples: Tensor, *labels: Tensor) -> Tensor:
        """Score samples (B, *shape), and let the normalisations take them into account."""
        scores = self.objective.of_fixed(self.objective.fixed_scores(samples, *labels))
        self.objective.observe(scores, *labels)
        return self.objective.total(scores, *labels)


def build_reward(
    reward: OwnReward,
    options: dict[str, Any],
    source: Source | None,
    *,
    num_classes: int,
    device: torch.device,
) -> Callable[..., Tensor] | None:
    """Build what an env pays.

    Args:
        reward: As `reward` of :func:`envs.factory.env_arguments`.
        options: Options of an adversarial reward.
        source: Where the sampler comes from; None for one of the user's own.
        num_classes: Number of classes of the model; 0 for none.
        device: Where networks live.

    Raises:
        UserError: For a reward that there is not, or one that lacks its source.
    """
    if reward is None:
        _refuse_options(options)
        return None
    ours = _Ours(options, source, device)
    items = reward if isinstance(reward, list | tuple) else [reward]
    terms = [ours.in_place_of_words(item) for item in items]
    if not ours.is_adversarial:
        _refuse_options(options)
    if items is not reward and ours.made is not None:
        return ours.made
    settings, own = handed_over(terms)
    around: dict[str, Any] = {
        "units": None if source is None else Units(source.config.samples),
        "num_classes": num_classes,
        "device": device,
    }
    named = {} if source is None else source.config.options
    objective = build_objective(settings, own, options=named, **around)
    (first, *others) = objective.terms
    if items is not reward and not others and first.score is not None:
        return first.score
    return MixedReward(objective)


class _Ours:
    """Makes the rewards that are called by a word."""

    def __init__(
        self, options: dict[str, Any], source: Source | None, device: torch.device
    ) -> None:
        self.options = options
        self.source = source
        self.device = device
        self.made: Callable[..., Tensor] | None = None
        self.is_adversarial = False

    def in_place_of_words(self, item: Any) -> Any:
        """Put the critic or the adversarial reward in place of its word in a term."""
        term = dict(item) if isinstance(item, Mapping) else {"use": item}
        use = term.get("use", CRITIC)
        if use not in (CRITIC, ADVERSARIAL):
            if isinstance(use, str) and ":" not in use:
                raise UserError(
                    f"reward: {use!r} is unknown, use critic, adversarial, 'module:function' or a "
                    "callable"
                )
            return term
        if self.source is None:
            raise UserError(f"reward: {use!r} needs a preset's or a run's data and critic")
        self.is_adversarial |= use == ADVERSARIAL
        make = _adversarial_reward if use == ADVERSARIAL else _frozen_critic
        self.made = make(self.source, self.options, self.device)
        return {"name": use, **term, "use": self.made}


def _refuse_options(options: dict[str, Any]) -> None:
    if options:
        raise UserError("reward_options: are for reward='adversarial'")


def _frozen_critic(
    source: Source, options: dict[str, Any], device: torch.device
) -> Callable[..., Tensor]:
    if source.trained is None:
        raise UserError("reward: 'critic' is a trained one, give run=FOLDER to take it from")
    critic = seeded_critic(source.config).to(device)
    critic.load_state_dict(source.trained["critic"])
    load_kept_state(critic, source.trained.get("critic_state", {}))
    return critic.requires_grad_(False).eval()


def _adversarial_reward(
    source: Source, options: dict[str, Any], device: torch.device
) -> AdversarialReward:
    known = OPTIONS_OF_ADVERSARIAL
    for name in options:
        if name not in known:
            raise UserError(f"reward_options: {name!r} is unknown; {did_you_mean(name, known)}")
    config = source.config
    size = options.get("batch_size", config.training.batch_size)
    critic = seeded_critic(config, batch_size=size).to(device)
    defaults = {
        "num_classes": config.model.num_classes,
        "learning_rate": config.critic.learning_rate,
        "adam_betas": config.critic.adam_betas,
        "batch_size": size,
        "seed": config.seed,
    }
    return AdversarialReward(critic, source.load_data(), **{**defaults, **options})
