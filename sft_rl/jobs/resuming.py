"""A check that people run on their own algorithms, critics and rewards: whether runs resume."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from sft_rl.config import Config
from sft_rl.config.files import load_config
from sft_rl.data import dataset_of
from sft_rl.jobs.commands import TrainedRun, train
from sft_rl.jobs.console import CallbackObserver
from sft_rl.learning.protocols import Silent
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
    if parts.get("data") is not None:
        parts["data"] = dataset_of(parts["data"], config.data)

    def stop(done: int, total: int, metrics: Metrics) -> None:
        if metrics.get("iteration") == interrupted_after:  # not one of the pretraining
            raise _Interrupted

    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch, "resumed")
        whole = train(config, Path(scratch, "whole"), observer=Silent(), **parts)
        with contextlib.suppress(_Interrupted):
            train(config, place, observer=CallbackObserver(stop), **parts)
        resumed = train(config, place, observer=Silent(), resume="always", **parts)
        _compare(whole, resumed)


def _compare(whole: TrainedRun, resumed: TrainedRun) -> None:
    hint = (
        "what is kept between iterations belongs into the state() of the algorithm, critic or "
        "reward, or into modules and optimisers among an algorithm's attributes"
    )
    tables = (run.store.read_metrics().drop(columns=list(CLOCKS)) for run in (whole, resumed))
    rows = (table.to_dict("records") for table in tables)
    for one, other in zip(*rows, strict=True):
        for name, value in one.items():
            same = value == other.get(name) or value != value  # a place without a number is nan
            assert same, (
                f"resumed, iteration {one['iteration']:.0f} has another {name}: "
                f"{other.get(name)!r}, uninterrupted {value!r}; {hint}"
            )
    hashes = [run.summary["policy_sha256"] for run in (whole, resumed)]
    assert hashes[0] == hashes[1], f"the resumed run gives another policy; {hint}"
