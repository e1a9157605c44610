"""From settings, and from what Python hands over, to an objective."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pydantic import ValidationError

from sft_rl.config import CRITIC, OWN, RewardConfig, TermConfig
from sft_rl.config.extensions import load_object
from sft_rl.config.files import explain
from sft_rl.data.dataset import Dataset
from sft_rl.errors import UserError
from sft_rl.rewards.normalise import Normaliser
from sft_rl.rewards.objective import Objective, Score, Term
from sft_rl.rewards.parts import InParts
from sft_rl.rewards.reward import Reward, as_reward

Remote = Callable[[TermConfig, Callable[[], Reward]], Score]
"""Starts the scorers of a term, each of which makes its reward there."""

OwnReward = Any
"""What Python hands over as reward: a function, object or module, or a list of terms, each such a
thing, the word of a setting `reward.terms.use`, or a mapping of a term's settings."""


def handed_over(reward: OwnReward) -> tuple[RewardConfig, dict[str, Any]]:
    """Take what Python hands over apart: into settings, and what they cannot hold, by term.

    Raises:
        UserError: For a setting that is wrong.
    """
    items = reward if isinstance(reward, list | tuple) else [reward]
    terms, own = [], {}
    for item in items:
        term = dict(item) if isinstance(item, Mapping) else {"use": item}
        use = term.get("use", CRITIC)
        if not isinstance(use, str):
            name = term.get("name") or _plain(getattr(use, "__name__", type(use).__name__))
            term |= {"use": OWN, "name": name}
            own[name] = use
        terms.append(term)
    try:
        return RewardConfig(terms=terms), own
    except ValidationError as error:
        raise UserError(f"reward.{explain(error)}") from error


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_0123456789") or OWN


def build_objective(
    rewards: RewardConfig,
    own: Mapping[str, Any],
    *,
    options: dict[str, Any],
    data: Dataset | None = None,
    remote: Remote | None = None,
    **around: Any,
) -> Objective:
    """Build an objective of its settings, and of what they cannot hold, by term.

    Args:
        rewards: The settings.
        own: What Python handed over.
        options: Options of users' own classes and functions.
        data: The run's data, for rewards that want them.
        remote: Starts scorers elsewhere; None builds all here.
        around: Units, number of classes and device, as of :class:`Reward`.

    Raises:
        UserError: If a term is not there, or does not go with the samples or the model.
    """
    num_classes, device = around["num_classes"], around["device"]
    terms = []
    for settings in rewards.terms:
        term = settings.model_copy(update={"weight": rewards.weight(settings)})
        field = f"reward: {term.name!r}"
        if term.normalise == "per_label" and not num_classes:
            raise UserError(
                f"{field} normalises per_label, but the model is not conditional on classes; use "
                "running"
            )
        if term.use == OWN and term.name not in own:
            raise UserError(f"{field} is a reward that is handed over in Python as reward=…")
        normaliser = Normaliser(term.normalise, num_classes=num_classes, device=device)
        if term.use == CRITIC:
            terms.append(Term(term, normaliser=normaliser))
            continue
        make = partial(as_reward, term, own.get(term.name), options)
        owner = None
        if term.uses_ray and remote is not None:
            loaded = own.get(term.name) or load_object("reward.terms", term.use)
            for name, does in (("state", "keeps a state"), ("wants_data", "wants the run's data")):
                if hasattr(loaded, name):
                    raise UserError(f"{field} {does}, so it is scored here: leave num_scorers out")
            score, has_gradient = remote(term, partial(make, **around)), False
        else:
            score = reward = make(data=data, **around)
            has_gradient, owner = reward.has_gradient, reward.function
        if not has_gradient:
            at_once = max(term.num_scorers, 1) if term.is_elsewhere else 1
            score = InParts(score, batch_size=term.batch_size, at_once=at_once)
        terms.append(Term(term, score, has_gradient, normaliser, owner))
    return Objective(terms)
