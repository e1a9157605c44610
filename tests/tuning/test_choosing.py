"""Early stopping, population-based training and Optuna, on results made up here."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up import RATE, make
from ray.tune.experiment import Trial

from tuning.constants import ASHA
from tuning.optuna_search import OptunaSearcher
from tuning.records import Record, Records
from tuning.schedulers import ASHAByStepCount, Population
from tuning.search import STEPS, Search


def enter(scheduler: ASHAByStepCount, index: int, steps: int) -> Trial:
    values = {STEPS: steps, RATE: 1e-4}
    trial = Trial(
        "made up", config={"trial": {"index": index, "values": values, "seed": 0}}, stub=True
    )
    scheduler.on_trial_add(None, trial)
    return trial


def report(scheduler: ASHAByStepCount, trial: Trial, percent: float, distance: float) -> str:
    row = {"percent": percent, "distance": distance}
    return scheduler.on_trial_result(None, trial, row)


@pytest.fixture
def steps_search() -> Search:
    return make({STEPS: {"grid": [2, 4]}, RATE: {"loguniform": [1e-5, 1e-2]}})


def test_asha_stops_weak_trials_only_among_the_same_steps(tmp_path: Path, steps_search: Search):
    scheduler = ASHAByStepCount(steps_search, Records(tmp_path))
    good, other, weak = (enter(scheduler, i, steps) for i, steps in enumerate((4, 2, 4)))
    assert report(scheduler, good, 10.0, 0.1) == "CONTINUE"
    assert report(scheduler, other, 10.0, 0.9) == "CONTINUE"
    assert report(scheduler, weak, 10.0, 0.2) == "STOP"


def test_asha_takes_its_constants_from_the_search_file(tmp_path: Path, steps_search: Search):
    patient = replace(steps_search.space, asha=ASHA(grace_percent=50))
    scheduler = ASHAByStepCount(replace(steps_search, space=patient), Records(tmp_path))
    good, weak = enter(scheduler, 0, 4), enter(scheduler, 1, 4)
    for percent, decision in ((40.0, "CONTINUE"), (50.0, "STOP")):
        assert report(scheduler, good, percent, 0.1) == "CONTINUE"
        assert report(scheduler, weak, percent, 0.9) == decision


def test_asha_leaves_a_trial_that_has_only_its_evaluation_left(
    tmp_path: Path, steps_search: Search
):
    scheduler = ASHAByStepCount(steps_search, Records(tmp_path))
    good, weak = enter(scheduler, 0, 4), enter(scheduler, 1, 4)
    assert report(scheduler, good, 100.0, 0.1) == "CONTINUE"
    assert report(scheduler, weak, 100.0, 0.9) == "CONTINUE"


def test_asha_remembers_the_trials_of_an_earlier_session(tmp_path: Path, steps_search: Search):
    values = {STEPS: 4, RATE: 1e-4}
    total = steps_search.config(values).training.num_iterations
    records = Records(tmp_path)
    records.put(Record(0, values, seed=0, state="done", curve=((total // 5, 0.1), (total, 0.05))))
    scheduler = ASHAByStepCount(steps_search, records)
    assert report(scheduler, enter(scheduler, 1, 4), 20.0, 0.2) == "STOP"


def test_asha_judges_a_trial_that_tells_again_as_at_the_first_time(
    tmp_path: Path, steps_search: Search
):
    rows = ((10.0, 0.5), (30.0, 0.3), (90.0, 0.1))
    scheduler = ASHAByStepCount(steps_search, Records(tmp_path))
    good, weak = enter(scheduler, 0, 4), enter(scheduler, 1, 4)
    for _ in range(2):  # the second time after the death of its process
        assert [report(scheduler, weak, *row) for row in rows] == ["CONTINUE"] * 3
        assert [report(scheduler, good, p, d / 2) for p, d in rows] == ["CONTINUE"] * 3
    for (percent, _), limit in zip(rows, (0.5, 0.3, 0.1), strict=True):
        cutoff = limit / 2 + limit / 6  # a third of the two, which count once
        assert report(scheduler, enter(scheduler, 2, 4), percent, 0.99 * cutoff) == "CONTINUE"
        assert report(scheduler, enter(scheduler, 3, 4), percent, 1.5 * cutoff) == "STOP"


def test_a_population_changes_rates_within_bounds_and_keeps_the_trials_number():
    search = make({RATE: {"loguniform": [1e-5, 1.1e-5]}}, scheduler="pbt")
    scheduler = Population(search, total=60, every=10)
    weak, strong = (
        Trial("made up", config={"trial": search.trial(i, {RATE: 1.05e-5})}, stub=True)
        for i in (0, 1)
    )
    for _ in range(20):
        config, _ = scheduler._get_new_config(weak, strong)
        assert (config["trial"]["index"], config["trial"]["seed"]) == (0, 0)
        assert 1e-5 <= config["trial"]["values"][RATE] <= 1.1e-5


def play(folder: Path, search: Search, num: int) -> list[dict[str, Any]]:
    """Let Optuna search for the rate 1e-4; distance falls with steps, too; seeds have a bias."""
    records = Records(folder)
    waiting = [i for i in range(search.num_runs) if i not in records]
    searcher = OptunaSearcher(search, records, waiting)
    suggested = []
    for number in range(num):
        given = searcher.suggest(str(number))
        assert isinstance(given, dict)
        trial = given["trial"]
        suggested.append(trial["values"])
        steps = trial["values"].get(STEPS, 1)
        distance = abs(trial["values"][RATE] - 1e-4) / steps + 0.1 * trial["seed"]
        records.put(Record(**trial, state="done", curve=((1, distance),)))
        searcher.on_trial_complete(str(number), {})
    return suggested


@pytest.mark.parametrize("steps", [None, {"choice": [2, 4]}])
def test_optuna_repeats_itself_and_goes_on_after_an_interruption(
    tmp_path: Path, steps: dict[str, Any] | None
):
    space = {RATE: {"loguniform": [1e-6, 1e-2]}} | ({STEPS: steps} if steps else {})
    search = make(space, num_trials=8, searcher="optuna")
    first, second = play(tmp_path / "a", search, 8), play(tmp_path / "b", search, 8)
    assert first == second
    assert len({values[RATE] for values in first}) == 8
    begun = play(tmp_path / "c", search, 3)
    assert begun == first[:3]
    rest = play(tmp_path / "c", search, 5)
    assert len(rest) == 5
    assert len(Records(tmp_path / "c").all()) == 8


def test_optuna_suggests_what_belongs_to_its_choice(tmp_path: Path):
    space = {
        "algorithm": {"choice": ["sft_pg", "ppo"]},
        RATE: {"lograndint": [1, 9]},
        "ppo.clip_range": {"loguniform": [0.05, 0.45], "step": 0.1, "when": {"algorithm": "ppo"}},
    }
    search = make(space, num_trials=30, searcher="optuna")
    suggested = play(tmp_path, search, 20)
    suggested += play(tmp_path, search, 10)  # from what is told of the first 20
    for values in suggested:
        assert values[RATE] in range(1, 10) or values == search.own(10)
        assert ("ppo.clip_range" in values) == (values["algorithm"] == "ppo")
        assert values.get("ppo.clip_range") in (None, 0.05, 0.15, 0.25, 0.35, 0.45)
    assert {values["algorithm"] for values in suggested} == {"sft_pg", "ppo"}


def test_optuna_ends_when_all_trials_are_suggested(tmp_path: Path):
    search = make({RATE: {"loguniform": [1e-6, 1e-2]}}, searcher="optuna")
    assert OptunaSearcher(search, Records(tmp_path), []).suggest("x") == "FINISHED"


def test_optuna_is_told_of_failures(tmp_path: Path):
    search = make({RATE: {"loguniform": [1e-6, 1e-2]}}, searcher="optuna")
    searcher = OptunaSearcher(search, Records(tmp_path), [4, 5])
    assert isinstance(searcher.suggest("a"), dict)
    searcher.on_trial_complete("a", error=True)
    assert isinstance(searcher.suggest("b"), dict)
    searcher.on_trial_complete("b", {"refused": "no"})
    assert [trial.state.name for trial in searcher._study.trials] == ["FAIL", "FAIL"]


def test_optuna_is_told_the_mean_over_the_seeds(tmp_path: Path):
    space = {RATE: {"loguniform": [1e-6, 1e-2]}}
    search = make(space, num_trials=3, seeds=2, searcher="optuna")
    suggested = play(tmp_path, search, 5)
    assert suggested[0::2] == [*suggested[1::2], suggested[4]]  # two trials with the same values
    waiting = [5]
    searcher = OptunaSearcher(search, Records(tmp_path), waiting)  # begun, but not to its end
    assert [trial.params for trial in searcher._study.trials] == suggested[0:4:2]
    last = searcher.suggest("x")
    assert isinstance(last, dict)
    assert (last["trial"]["values"], last["trial"]["seed"]) == (suggested[4], 1)
    distances = [abs(values[RATE] - 1e-4) + 0.05 for values in suggested[0:4:2]]
    assert [trial.value for trial in searcher._study.trials] == pytest.approx(distances)


def test_optuna_counts_a_configuration_as_failed_if_one_seed_is(tmp_path: Path):
    search = make({RATE: {"loguniform": [1e-6, 1e-2]}}, seeds=2, searcher="optuna")
    searcher = OptunaSearcher(search, Records(tmp_path), [2, 3])
    assert isinstance(searcher.suggest("a"), dict)
    assert isinstance(searcher.suggest("b"), dict)
    searcher.on_trial_complete("a", error=True)
    assert [trial.state.name for trial in searcher._study.trials] == ["RUNNING"]
    searcher.on_trial_complete("b", {})
    assert [trial.state.name for trial in searcher._study.trials] == ["FAIL"]
