"""Checks that people can run on their own algorithms, critics and rewards."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from sft_rl.api import Result, fine_tune, load_config
from sft_rl.config import Config
from sft_rl.types import Metrics

CLOCKS = ("seconds", "seconds_waiting", "trajectories_per_second")


class _Interrupted(BaseException):
    """What stops the run that is resumed: nothing catches it."""


def check_resumes(
    config: Config | str, *, num_iterations: int = 4, interrupted_after: int = 2, **parts: Any
) -> None:
    """Check that a run goes on to the very result that it would have had uninterrupted.

    A run of a few iterations is compared, to the last bit, with one that is stopped on the way and
    resumed with new objects. An algorithm that keeps something between iterations without declaring
    it in ``state()`` starts anew there, and so does not pass.

    Args:
        config: The settings, or the name of a preset; the smaller, the sooner it is over.
        num_iterations: Iterations of both runs.
        interrupted_after: Iterations before the interruption.
        parts: What :func:`sft_rl.fine_tune` takes from Python: `network`, `data`, `reward`.

    Raises:
        AssertionError: Naming the first iteration and number that differ.
    """
    config = load_config(config) if isinstance(config, str) else config
    lengths = {
        "num_iterations": num_iterations,
        "checkpoint_every": interrupted_after,
        "eval_every": num_iterations,
    }
    training = config.training.model_copy(update=lengths)
    config = config.model_copy(update={"training": training})

    def stop(done: int, total: int, metrics: Metrics) -> None:
        if metrics.get("iteration") == interrupted_after:  # not one of the pretraining
            raise _Interrupted

    with tempfile.TemporaryDirectory() as scratch:
        whole = fine_tune(config, out=Path(scratch, "whole"), observer=None, **parts)
        with contextlib.suppress(_Interrupted):
            fine_tune(config, out=Path(scratch, "resumed"), observer=stop, **parts)
        resumed = fine_tune(
            config, out=Path(scratch, "resumed"), observer=None, resume=True, **parts
        )
    _compare(whole, resumed)


def _compare(whole: Result, resumed: Result) -> None:
    hint = (
        "what is kept between iterations belongs into the state() of the algorithm, critic or "
        "reward, or into modules and optimisers among an algorithm's attributes"
    )
    rows = (run.history.drop(columns=list(CLOCKS)).to_dict("records") for run in (whole, resumed))
    for one, other in zip(*rows, strict=True):
        for name, value in one.items():
            same = value == other.get(name) or value != value  # a place without a number is nan
            assert same, (
                f"resumed, iteration {one['iteration']:.0f} has another {name}: "
                f"{other.get(name)!r}, uninterrupted {value!r}; {hint}"
            )
    hashes = [run.metrics["policy_sha256"] for run in (whole, resumed)]
    assert hashes[0] == hashes[1], f"the resumed run gives another policy; {hint}"
