"""What final samples are scored by: the critic, rewards of the user's own, or a mix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sft_rl.config.base import Count, NonNegative, NonNegativeInt, Positive, Section

CRITIC = "critic"
OWN = "own"


class TermConfig(Section):
    """One term of the objective, sum_i weight_i E[term_i]."""

    use: str = CRITIC
    """`critic`, a user's `module:function` or `module:Class`, the address (http://…) of a server
    that scores, or `own`, what Python hands over."""
    name: str = ""
    """What its numbers are called; filled in from `use`."""
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """Its weight; 0 watches it only."""
    normalise: Literal["none", "batch", "running", "per_label"] = "none"
    """Shift and scale its scores to mean 0 and standard deviation 1: over the newest batch, over
    all so far (`running`), or over all of the same class (`per_label`)."""
    look_ahead: bool = False
    """Ask a reward without a gradient at every look, as the critic is: also about the samples that
    the policy expects on its way, for a look-ahead baseline. That is T + 2 scorings of a trajectory
    in place of one."""
    batch_size: Count | None = None
    """Samples of one call; none takes a shard's."""
    num_scorers: NonNegativeInt = 0
    """Ray actors that score; 0 scores in the learner's process. Of a server: calls at a time."""
    num_cpus_per_scorer: NonNegative = 1.0
    """Logical CPUs of a scorer, may be fractional."""
    num_gpus_per_scorer: NonNegative = 0.0
    """GPUs of a scorer, may be fractional."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Ray's labels that a scorer's node must have."""
    timeout_s: Positive = 60.0
    """Seconds that a scorer or a server may take for a call."""
    token_variable: str | None = None
    """Environment variable that holds the server's bearer token."""

    @model_validator(mode="before")
    @classmethod
    def _word(cls, values: Any) -> Any:
        """Read a lone word as `use`; name the term."""
        if isinstance(values, str):
            values = {"use": values}
        if isinstance(values, Mapping) and not values.get("name"):
            return {**values, "name": _name_of(str(values.get("use", CRITIC)))}
        return values

    @model_validator(mode="after")
    def _is_known(self) -> TermConfig:
        if self.use not in (CRITIC, OWN) and ":" not in self.use:
            raise ValueError(
                f"reward.terms: {self.use!r} is unknown; use 'critic', your own 'module:function' "
                "or the address of a server"
            )
        if not re.fullmatch(r"[A-Za-z]\w*", self.name):
            raise ValueError(f"reward.terms.name: letters, digits and _ only, got {self.name!r}")
        if self.is_url and re.match(r"https?://[^/]*@", self.use):
            raise ValueError(
                "reward.terms.use: an address with a password would be kept in the run's settings; "
                "name an environment variable as token_variable"
            )
        if self.token_variable is not None and not self.is_url:
            raise ValueError("reward.terms.token_variable: goes with a server's address")
        if self.use == CRITIC and self.num_scorers:
            raise ValueError("reward.terms.num_scorers: the critic is scored where it learns")
        return self

    @property
    def is_url(self) -> bool:
        """Whether a server scores."""
        return self.use.startswith(("http://", "https://"))

    @property
    def uses_ray(self) -> bool:
        """Whether actors score."""
        return self.num_scorers > 0 and not self.is_url

    @property
    def is_elsewhere(self) -> bool:
        """Whether actors or a server score, so that one can compute meanwhile."""
        return self.is_url or self.uses_ray


def _name_of(use: str) -> str:
    """Name of a term by what it uses: a function's own, a server's host and path."""
    bare = re.sub(r"^https?://", "", use)
    last = re.sub(r"\W+", "_", bare) if bare != use else use.rpartition(":")[2].rpartition(".")[2]
    return last.strip("_") if last[:1].isalpha() else f"term_{last.strip('_')}"


class RewardConfig(Section):
    """What is maximised: a weighted sum of terms."""

    terms: tuple[TermConfig, ...] = (TermConfig(name=CRITIC),)
    """The terms, each a word for its `use` or a mapping of its settings:
    `reward.terms=[critic, {use: module:function, weight: 0.5}]`. `reward=module:function` is one
    term alone: fine-tuning by reward, as DDPO does."""
    weights: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(default_factory=dict)
    """Weights by a term's name, in place of its own: `reward.weights.NAME=0.3` is searched."""
    num_scored: Count = 2_000
    """Samples that every term scores at an evaluation; the critic alone needs none."""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, values: Any) -> Any:
        """Read a word or a list as the terms."""
        if isinstance(values, str | list | tuple):
            values = {"terms": values}
        if isinstance(values, Mapping) and isinstance(values.get("terms"), str | Mapping):
            return {**values, "terms": [values["terms"]]}
        return values

    def weight(self, term: TermConfig) -> float:
        """What a term counts."""
        return self.weights.get(term.name, term.weight)

    @model_validator(mode="after")
    def _sum_is_one(self) -> RewardConfig:
        if all(self.weight(term) == 0.0 for term in self.terms):
            raise ValueError("reward.terms: none has a weight, so nothing is maximised")
        names = [term.name for term in self.terms]
        if sum(term.use == CRITIC for term in self.terms) > 1:
            raise ValueError("reward.terms: there is one critic, and so one term of it at most")
        for name in self.weights:
            if name not in names:
                raise ValueError(f"reward.weights: {name!r} is none of the terms {names}")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"reward.terms: two are called {name!r}; give one another name")
        return self

    @property
    def uses_critic(self) -> bool:
        """Whether the critic is a term."""
        return any(term.use == CRITIC for term in self.terms)

    @property
    def is_critic_alone(self) -> bool:
        """Whether nothing but the critic counts: shortcut fine-tuning as in the paper."""
        return all(term.use == CRITIC for term in self.terms)
