"""Who wins a search, and how it is measured again, on trials made up here."""

from pathlib import Path

import pytest
from made_up import RATE, SPACE, fail, finish, make

from tuning.final import Contender, Result, contenders, final_trials, results, verdict
from tuning.ranking import Estimate, best_by_steps, configurations, pareto_front
from tuning.records import Record, Records
from tuning.runner import num_unfinished
from tuning.search import STEPS

LOW, HIGH = {STEPS: 2, RATE: 1e-5}, {STEPS: 2, RATE: 1e-3}


def test_validation_ranks_and_held_out_data_has_no_say(tmp_path: Path):
    search, records = make(), Records(tmp_path)
    finish(search, records, 0, LOW, validation=0.6, held_out=0.99)
    finish(search, records, 1, HIGH, validation=0.7, held_out=0.51)
    assert best_by_steps(configurations(search, records))[2].values == LOW


def test_the_mean_over_seeds_ranks_and_has_an_error(tmp_path: Path):
    search, records = make(seeds=2), Records(tmp_path)
    for index, (values, validation) in enumerate(
        [(LOW, 0.60), (LOW, 0.70), (HIGH, 0.55), (HIGH, 0.85)]
    ):
        finish(search, records, index, values, validation=validation)
    low, high = configurations(search, records)
    assert [record.seed for record in (*low.trials, *high.trials)] == [0, 1, 0, 1]
    assert (low.validation.mean, low.validation.error) == pytest.approx((0.65, 0.05))
    assert (high.validation.mean, high.validation.error) == pytest.approx((0.70, 0.15))
    assert best_by_steps([low, high])[2] == low
    assert (low.label, high.label, str(low.validation)) == (
        "trials 0 to 1",
        "trials 2 to 3",
        "0.6500 ± 0.0500",
    )


def test_a_configuration_is_not_ranked_before_all_its_seeds_are_done(tmp_path: Path):
    search, records = make(seeds=2), Records(tmp_path)
    finish(search, records, 0, LOW, validation=0.5)
    assert [one.state for one in configurations(search, records)] == ["waiting"]
    fail(search, records, 1, LOW)
    finish(search, records, 2, HIGH, validation=0.9)
    finish(search, records, 3, HIGH, validation=0.9)
    assert [one.state for one in configurations(search, records)] == ["failed", "done"]
    assert best_by_steps(configurations(search, records))[2].values == HIGH


@pytest.mark.parametrize(("select_best", "expected"), [("false", 0.6), ("true", 0.4)])
def test_the_validation_is_that_of_the_sampler_that_a_run_gives(
    tmp_path: Path, select_best: str, expected: float
):
    search, records = make(SPACE, f"training.select_best={select_best}"), Records(tmp_path)
    curve = ((10, 0.5), (20, 0.4), (30, 0.6))
    records.put(Record(0, LOW, seed=0, state="done", curve=curve))
    assert configurations(search, records)[0].validation.mean == expected


def test_the_presets_own_is_the_presets_own_with_another_grid_key(tmp_path: Path):
    space = {STEPS: {"grid": [2]}, "algorithm": {"grid": ["sft_pg", "ppo"]}}
    search, records = make(space, num_trials=2, final_seeds=2), Records(tmp_path)
    finish(search, records, 0, search.planned(0), validation=0.8)
    finish(search, records, 1, search.planned(1), validation=0.6)  # the last row of that key
    winner, own = contenders(search, records)
    assert (winner.values["algorithm"], winner.is_own) == ("ppo", False)
    assert (own.values["algorithm"], own.is_winner) == ("sft_pg", False)


def test_the_presets_own_is_trained_again_also_where_the_space_lacks_it(tmp_path: Path):
    space = {STEPS: {"grid": [2, 4]}, RATE: {"uniform": [0.5, 0.6]}}
    search, records = make(space, num_trials=2, final_seeds=2), Records(tmp_path)
    for index in range(2):
        finish(search, records, index, search.planned(index), validation=0.8)
    own = [one for one in contenders(search, records) if one.is_own]
    assert [one.values for one in own] == [search.own(2), search.own(4)]
    assert own[0].values[RATE] == search.config({STEPS: 2}).policy.learning_rate


def test_winners_are_trained_again_with_fresh_seeds_after_the_last_trial(tmp_path: Path):
    search = make(seeds=2, num_trials=2, final_seeds=3, seed=7)
    records, finals = Records(tmp_path / "trials"), Records(tmp_path / "final")
    for index in range(3):
        finish(search, records, index, [search.own(2), HIGH][index // 2], validation=0.6 + index)
    assert final_trials(search, records, finals) == []
    assert num_unfinished(search, records, finals) == 1
    finish(search, records, 3, HIGH, validation=0.9)
    trials = final_trials(search, records, finals)
    assert trials == [{"index": i, "values": search.own(2), "seed": 9 + i} for i in range(3)]
    finish(search, finals, 0, search.own(2), validation=0.7, seed=9)
    assert final_trials(search, records, finals) == trials
    assert num_unfinished(search, records, finals) == 2


def test_a_new_winner_does_not_take_the_numbers_of_the_old_one(tmp_path: Path):
    search = make(num_trials=2, final_seeds=2)
    records, finals = Records(tmp_path / "trials"), Records(tmp_path / "final")
    fail(search, records, 0, LOW)
    finish(search, records, 1, HIGH, validation=0.9)
    for trial in final_trials(search, records, finals):
        finish(search, finals, trial["index"], trial["values"], validation=1, seed=trial["seed"])
    finish(search, records, 0, LOW, validation=0.5)  # its other chance
    trials = final_trials(search, records, finals)
    assert [(t["index"], t["values"][RATE]) for t in trials[:2]] == [(4, 1e-5), (5, 1e-5)]
    assert [t["index"] for t in trials[2:]] == [2, 3]  # the preset's own is what it was


def test_results_are_of_held_out_data_once_all_seeds_are_done(tmp_path: Path):
    search = make(num_trials=2, final_seeds=2)
    records, finals = Records(tmp_path / "trials"), Records(tmp_path / "final")
    finish(search, records, 0, search.own(2), validation=0.9)
    finish(search, records, 1, LOW, validation=0.5, held_out=0.51)
    for trial, held_out in zip(
        final_trials(search, records, finals), (0.6, 0.62, 0.7), strict=False
    ):
        finish(
            search, finals, trial["index"], trial["values"],
            validation=0.9, held_out=held_out, seed=trial["seed"],
        )  # fmt: skip
    winner, own = results(search, records, finals)
    assert (winner.held_out.mean, winner.held_out.error) == pytest.approx((0.61, 0.01))
    assert (winner.before.mean, winner.before.error) == (0.9, 0.004)
    assert str(own.held_out.mean) == "nan"
    assert verdict(winner, own) == "not measured"


def result(mean: float, error: float, *, is_own: bool = False) -> Result:
    one = Contender(2, {}, is_winner=True, is_own=is_own)
    return Result(one, (), Estimate(mean, error), Estimate(0.9, 0.01))


@pytest.mark.parametrize(
    ("winner", "own", "expected"),
    [
        ((0.60, 0.003), (0.62, 0.004), "better than the preset by 0.0200 ± 0.0050"),
        ((0.60, 0.005), (0.62, 0.006), "no better than the preset"),
        ((0.64, 0.003), (0.62, 0.004), "worse than the preset by 0.0200 ± 0.0050"),
        ((0.95, 0.01), (0.97, 0.01), "no better than the preset; **worse than not fine-tuned**"),
        ((0.91, 0.01), (0.97, 0.1), "no better than the preset; **no better than not fine-tuned**"),
    ],
)
def test_better_is_said_only_where_the_intervals_do_not_overlap(
    winner: tuple[float, float], own: tuple[float, float], expected: str
):
    assert verdict(result(*winner), result(*own, is_own=True)) == expected


def test_a_winner_that_is_the_presets_own_is_called_so():
    own = result(0.6, 0.01, is_own=True)
    assert verdict(own, own) == "the preset's own is the best"


def test_one_number_has_no_error_and_beats_nobody():
    alone = Estimate.of([0.5])
    assert str(alone) == "0.5000"
    assert not alone.is_below(Estimate(0.9, 0.001))


def test_pareto_front_keeps_what_nothing_with_fewer_steps_beats():
    points = [(2, 0.5), (4, 0.3), (4, 0.2), (6, 0.4), (10, 0.1), (10, 0.1)]
    assert pareto_front(points) == [True, False, True, False, True, False]
