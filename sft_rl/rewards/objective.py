r"""What is maximised: a weighted sum of the critic and of rewards.

.. math::
    J(\theta) = \sum_i w_i\, \mathbb{E}_{x \sim p_\theta}\left[n_i(r_i(x))\right]

The critic is a term like any other, r_i = f; n_i is the term's normalisation. As f is the witness
of a distance to the data, a positive weight of it is a price for leaving the data: to maximise it
beside r is to approach the data tilted by exp(r), as a KL would have it.

Terms are of two kinds. *Live* ones are asked wherever an algorithm looks: the critic, which
changes, rewards that have a gradient, and those with ``look_ahead``. All others score each
trajectory once, as it arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sft_rl.config import TermConfig
from sft_rl.rewards.normalise import Normaliser
from sft_rl.rewards.parts import InParts
from sft_rl.storage.state import declared_state, load_declared_state

Score = Callable[..., Tensor]
"""Scores samples (B, *shape) in model units, and labels (B,) if there are classes, shape (B,)."""


@dataclass(frozen=True)
class Term:
    """One term.

    Attributes:
        config: Its name, weight and the rest.
        score: Who scores; None is the critic.
        has_gradient: Whether its scores can be differentiated.
        normaliser: Shifts and scales its scores.
        owner: The user's own object, where it scores here: what its ``state()`` declares is kept.
    """

    config: TermConfig = field(default_factory=TermConfig)
    score: Score | None = None
    has_gradient: bool = True
    normaliser: Normaliser = field(default_factory=lambda: Normaliser("none"))
    owner: object = None

    @property
    def is_live(self) -> bool:
        """Whether it is asked wherever an algorithm looks."""
        if self.score is None:
            return True
        is_asked = self.has_gradient or self.config.look_ahead
        return is_asked and self.config.weight != 0.0


class Objective:
    """A weighted sum of terms; by default the critic alone.

    Args:
        terms: Its terms.
    """

    def __init__(self, terms: Sequence[Term] = (Term(),)) -> None:
        self.terms = tuple(terms)
        self.live = [term for term in self.terms if term.is_live]
        self.fixed = [term for term in self.terms if not term.is_live]
        self.rewards = [term for term in self.terms if term.score is not None]

    @property
    def critic(self) -> Term | None:
        """The critic's term, if it takes part."""
        return next((term for term in self.terms if term.score is None), None)

    def live_scores(self, critic: Score, x: Tensor, *labels: Tensor) -> dict[str, Tensor]:
        """Score samples (B, *shape) by the live terms, by name, each of shape (B,)."""
        return {t.config.name: (t.score or critic)(x, *labels) for t in self.live}

    def fixed_scores(self, x: Tensor, *labels: Tensor) -> Tensor:
        """Score samples (B, *shape) by the K terms that score once, shape (K, B), raw."""
        rows = [t.score(x, *labels) for t in self.fixed if t.score is not None]
        return torch.stack(rows) if rows else x.new_zeros(0, len(x))

    def of_fixed(self, rows: Tensor) -> dict[str, Tensor]:
        """Name the rows of :meth:`fixed_scores`."""
        return {t.config.name: row for t, row in zip(self.fixed, rows, strict=True)}

    def total(self, scores: Mapping[str, Tensor], *labels: Tensor) -> Tensor:
        """Sum raw scores, each of shape (B,), by their weights after normalisation."""
        parts = [
            term.config.weight * term.normaliser(scores[term.config.name], *labels)
            for term in self.terms
            if term.config.name in scores
        ]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def observe(self, scores: Mapping[str, Tensor], *labels: Tensor) -> None:
        """Let the normalisations take a batch of raw scores into account."""
        for term in self.terms:
            term.normaliser.observe(scores[term.config.name], *labels)

    @torch.no_grad()
    def looked_at(self, x: Tensor, *labels: Tensor) -> dict[str, Tensor]:
        """Score samples (B, *shape) by every reward, by name, raw, each of shape (B,).

        What rewards keep is left as it was: they learn of what the run draws, not of being looked
        at.
        """
        before = self.state()
        scores = {t.config.name: t.score(x, *labels) for t in self.rewards if t.score}
        self.load_state(before)
        return scores

    def close(self) -> None:
        """Let go of who scores elsewhere."""
        for term in self.rewards:
            if isinstance(term.score, InParts):
                term.score.close()

    def state(self) -> dict[str, Tensor]:
        """What the normalisations have seen and the rewards keep, by the terms' names."""
        tensors = {t.config.name: t.normaliser.moments.clone() for t in self.terms}
        for term in self.terms:
            own = declared_state(term.owner)
            tensors |= {f"{term.config.name}.{name}": kept.clone() for name, kept in own.items()}
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo :meth:`state`."""
        for term in self.terms:
            name, lead = term.config.name, f"{term.config.name}."
            term.normaliser.moments.copy_(tensors[name])
            own = {k.removeprefix(lead): v for k, v in tensors.items() if k.startswith(lead)}
            load_declared_state(term.owner, own)
