"""Constants of the schedulers, sections ``asha`` and ``pbt`` of a search file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sft_rl.config import Section


class ASHA(Section):
    """Asynchronous successive halving."""

    grace_percent: Annotated[float, Field(gt=0.0, lt=100.0)] = 10.0
    """Share of its iterations that every trial gets."""
    reduction_factor: Annotated[float, Field(gt=1.0, allow_inf_nan=False)] = 3.0
    """One of so many goes on at each rung; rungs are as many times further apart."""
    brackets: Annotated[int, Field(ge=1, le=10)] = 1
    """Races that start their rungs later and later, among which trials are dealt out."""


class PBT(Section):
    """Population-based training."""

    num_generations: Annotated[int, Field(ge=1)] = 6
    """How often trials compare themselves, at most once an evaluation."""
    quantile_fraction: Annotated[float, Field(gt=0.0, le=0.5)] = 0.25
    """Share of trials that take over from as many of the best."""
    resample_probability: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    """How often a rate is drawn anew instead of being multiplied by 0.8 or 1.2."""
