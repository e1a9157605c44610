"""When a search begins no more trials, and which number ranks them."""

import math
from functools import partial
from pathlib import Path

import pytest
from made_up import RATE, SPACE, fail, finish, make

from sft_rl.cli import main
from sft_rl.config.files import load_config
from sft_rl.distributed.placement import Bundle
from sft_rl.errors import OwnCodeFailed, UserError
from tuning.limits import Limits, seconds
from tuning.objective import load_objective
from tuning.ranking import configurations, since_the_best
from tuning.records import Records
from tuning.search import STEPS
from tuning.suggestions import InTurn


def test_durations_are_read_as_people_write_them():
    assert [seconds(text) for text in ("90", "1.5m", "2h", "1d", "7s")] == [90, 90, 7200, 86400, 7]
    for wrong in ("soon", "", "h", "2 hours"):
        with pytest.raises(UserError, match="a duration such as 90m, 2h or 3600, got"):
            seconds(wrong)


def test_patience_counts_from_the_last_best_of_each_number_of_steps(tmp_path: Path):
    search, records = make(num_trials=9), Records(tmp_path)
    counted = []
    for index, (steps, validation) in enumerate(
        [(2, 0.9), (4, 0.5), (2, 0.95), (4, 0.6), (2, 0.8), (2, 0.8)]
    ):
        finish(search, records, index, {STEPS: steps, RATE: 1e-4}, validation=validation)
        counted.append(since_the_best(configurations(search, records)))
    assert counted == [0, 0, 1, 2, 0, 1]
    fail(search, records, 6, {STEPS: 2, RATE: 1e-4})
    assert since_the_best(configurations(search, records)) == 2
    assert Limits(patience=3).reached(search, records, 0.0) == ""
    said = Limits(patience=2).reached(search, records, 0.0)
    assert said == "--patience: 2 configurations in a row were no new best"


def test_what_has_begun_is_measured_with_all_its_seeds(tmp_path: Path):
    search, records = make(num_trials=3, seeds=2), Records(tmp_path)
    finish(search, records, 0, search.planned(0), validation=0.5)
    trials = InTurn(search, records, [1, 2, 3, 4, 5], Limits(time_budget=1e-9))
    given = trials.suggest("a")
    assert isinstance(given, dict)
    assert given["trial"] == search.trial(1, search.planned(0))
    assert trials.suggest("b") == "FINISHED"
    assert "are over" in trials.reached
    unbound = InTurn(search, records, [1, 2, 3, 4, 5])
    begun = [unbound.suggest(str(i)) for i in range(6)]
    assert begun[1:] == [
        {"trial": search.trial(i, search.planned(i // 2))} for i in (2, 3, 4, 5)
    ] + ["FINISHED"]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(time_budget=-1), "--time-budget: must be longer than 0 s, got -1"),
        (Limits(patience=0), "--patience: must be at least 1, got 0"),
        (Limits(max_concurrent=0), "--max-concurrent: must be at least 1, got 0"),
    ],
)
def test_limits_below_one_trial_are_refused(limits: Limits, expected: str):
    with pytest.raises(UserError, match=expected):
        limits.check(make())
    with pytest.raises(UserError, match="under pbt all trials run side by side"):
        Limits(patience=1).check(make({RATE: {"uniform": [0.1, 1]}}, scheduler="pbt"))


def test_trials_are_added_to_a_finished_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    search = make(num_trials=4)
    longer = search.with_trials(6)
    assert [longer.planned(i) for i in range(4)] == [search.planned(i) for i in range(4)]
    assert make({STEPS: {"grid": [2, 4]}}).with_trials(9).num_trials == 2
    search.save(tmp_path)
    assert main(["tune", "--resume", str(tmp_path), "--num-trials", "4"]) == 2
    said = "--num-trials: the search has 4 configurations already; give more"
    assert said in capsys.readouterr().err


def spread(measured: dict[str, float]) -> float:
    return measured["two_sample"] + 0.1 * (1.0 - measured["recall"])


def broken(measured: dict[str, float]) -> float:
    return measured["recal"]


def infinite(measured: dict[str, float]) -> float:
    return math.inf


def test_any_metric_or_function_of_them_ranks():
    config = load_config("swiss_roll")
    measured = {"two_sample": 0.6, "precision": 0.9, "recall": 0.7, "sliced_wasserstein": 0.01}
    row = {**measured, "two_sample_se": 0.02, "loss": 3.0}
    load = partial(load_objective, config.watched, config.distance)
    leading = load()
    assert (leading.name, leading.of(row), leading.error_of(row)) == ("two_sample", 0.6, 0.02)
    missing = load("recall")
    assert (missing.name, missing.is_leading) == ("1 - recall", False)
    assert missing.of(row) == pytest.approx(0.3)
    own = load("test_limits:spread")
    assert own.of(row) == pytest.approx(0.63)
    assert math.isnan(own.error_of(row))
    with pytest.raises(OwnCodeFailed, match="KeyError"):
        load("test_limits:broken").of(row)
    with pytest.raises(UserError, match="gave inf; expected a finite number"):
        load("test_limits:infinite").of(row)
    for name, said in (
        ("recal", "did you mean 'recall'"),
        ("kernel", "is not measured by evaluations"),
        ("test_limits:absent", "has no 'absent'"),
        ("test_limits:RATE", "is no function"),
    ):
        with pytest.raises(UserError, match=said):
            load(name)


def test_trials_at_once_are_those_that_fit_and_may():
    search = make(SPACE, "rollout.num_workers=1", "learner.num_cpus=1", num_trials=5)
    four, eight = ({"here": Bundle(cpus, 0.0)} for cpus in (4.5, 8.0))
    assert Limits().at_once(search, {"here": Bundle(1.0, 0.0)}) == 1
    assert Limits().at_once(search, four) == 2
    assert Limits().at_once(search, eight) == 4
    assert Limits(max_concurrent=3).at_once(search, eight) == 3
    assert Limits().at_once(search.with_trials(1), eight) == 1
