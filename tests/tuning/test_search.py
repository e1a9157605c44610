"""Searches: which trials they run, what they refuse, what survives on disk."""

from pathlib import Path

import pytest

from sft_rl.distributed.placement import Bundle
from sft_rl.errors import UserError
from tuning.checks import check_room, check_search
from tuning.records import Record, Records
from tuning.search import Search
from tuning.space import parse_space

RATE, STEPS = "policy.learning_rate", "sampler.num_steps"
TREE = {
    "settings": {"rollout.num_workers": 0, "value.width": 16},
    "space": {STEPS: {"grid": [2, 4]}, RATE: {"loguniform": [1e-5, 1e-2]}},
}


def make(tree: object = TREE, *settings: str, **changes: object) -> Search:
    options: dict[str, object] = {"num_trials": 6, "seed": 3, **changes}
    return Search("swiss_roll", settings, parse_space("test", tree), **options)  # type: ignore[arg-type]


def test_trials_go_round_the_grid_and_begin_with_the_presets_own_values():
    search = make()
    trials = [search.planned(index) for index in range(6)]
    assert [trial[STEPS] for trial in trials] == [2, 4, 2, 4, 2, 4]
    assert [search.is_default(index) for index in range(3)] == [True, True, False]
    for trial in trials[:2]:
        preset = make({"space": {STEPS: {"grid": [trial[STEPS]]}}}).config({STEPS: trial[STEPS]})
        assert trial[RATE] == preset.policy.learning_rate
    assert len({trial[RATE] for trial in trials[2:]}) == 4


def test_the_seed_fixes_every_trial_whatever_else_is_asked():
    search, longer = make(), make(num_trials=20)
    assert [search.planned(i) for i in range(6)] == [longer.planned(i) for i in range(6)]
    assert search.planned(4) != make(seed=4).planned(4)
    assert search.config(search.planned(4)).seed == 3


def test_a_default_outside_the_space_is_not_run():
    tree = {"space": {RATE: {"uniform": [0.5, 0.6]}}}
    search = make(tree)
    assert not search.is_default(0)
    assert 0.5 <= search.planned(0)[RATE] <= 0.6


def test_the_command_line_wins_over_the_space_and_the_space_over_the_preset():
    config = make(TREE, "value.width=24").config({STEPS: 4, RATE: 1.25e-5})
    assert (config.value.width, config.rollout.num_workers) == (24, 0)
    assert (config.sampler.num_steps, config.policy.learning_rate) == (4, 1.25e-5)
    left = parse_space("test", TREE).without({STEPS: 4, "value.width": 24})
    assert list(left.distributions) == [RATE]
    assert dict(left.settings) == {"rollout.num_workers": 0}
    with pytest.raises(UserError, match="nothing is left to search"):
        parse_space("test", TREE).without({STEPS: 2, RATE: 1e-4})


def test_a_search_is_read_back_as_it_was(tmp_path: Path):
    search = make(TREE, "value.width=24", searcher="optuna", scheduler="asha")
    search.save(tmp_path)
    assert Search.load(tmp_path) == search


def test_a_search_over_algorithms_with_settings_and_options_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.syspath_prepend(Path("examples").resolve())
    own = "running_baseline:RunningBaseline"
    tree = {
        "space": {
            "algorithm": {"choice": ["sft_pg", "ppo", own]},
            "ppo.num_epochs": {"randint": [1, 4], "when": {"algorithm": "ppo"}},
            "options.decay": {"uniform": [0.5, 0.99], "when": {"algorithm": own}},
        }
    }
    search = make(tree, num_trials=12)
    check_search(search, None)
    assert search.planned(0) == search.own(10) == {"algorithm": "sft_pg"}
    tried = [search.planned(number) for number in range(12)]
    assert {values["algorithm"] for values in tried} == {"sft_pg", "ppo", own}
    for values in tried:
        config = search.config(values)
        assert config.options == {k[8:]: v for k, v in values.items() if k.startswith("options.")}
    alone = {"space": {"options.decay": {"uniform": [0.5, 0.99]}}}
    with pytest.raises(UserError, match=r"options\.decay: nothing declares it"):
        check_search(make(alone), None)
    when = {"choice": [2, 4], "when": {"algorithm": "ppo"}}
    with pytest.raises(UserError, match="cannot depend on others"):
        check_search(make({"space": {"algorithm": tree["space"]["algorithm"], STEPS: when}}), None)


def test_the_distance_that_leads_the_runs_ranks_them():
    space = parse_space("test", {"space": {RATE: {"uniform": [1e-4, 1e-3]}}})
    search = Search("digits", ("rollout.num_workers=0",), space, 1, 0)
    check_search(search, None)
    assert search.objective.name == "frechet_inf"
    assert make(TREE, "metrics.distance=sliced_wasserstein").objective.name == "sliced_wasserstein"


def test_the_seeds_of_a_configuration_follow_each_other():
    search = make(num_trials=2, seeds=3)
    trials = [search.trial(index, {}) for index in range(search.num_runs)]
    assert [trial["seed"] for trial in trials] == [3, 4, 5, 3, 4, 5]
    assert search.config({}, trials[1]["seed"]).seed == 4


def test_resume_refuses_what_is_no_search(tmp_path: Path):
    with pytest.raises(UserError, match="holds no search"):
        Search.load(tmp_path)
    (tmp_path / "search.yaml").write_text("preset: swiss_roll\n")
    with pytest.raises(UserError, match="is not a 'sft-rl search 2'"):
        Search.load(tmp_path)
    make().save(tmp_path)
    (tmp_path / "000").mkdir()
    (tmp_path / "000" / "trial.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        Records(tmp_path)


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        (make(num_trials=0), "--num-trials: must be at least 1, got 0"),
        (make(TREE, "learner.launcher=ray_train"), "leave it at 'local'"),
        (make(seeds=0), "--seeds: must be at least 1, got 0"),
        (make(final_seeds=-1), "--final-seeds: must be 0 for none, or at least 2"),
        (make(final_seeds=1), "one gives no error; got 1"),
        (make(seeds=2, scheduler="asha"), "--scheduler asha decides on single trials"),
        (make({"space": {STEPS: {"grid": [2]}, RATE: {"choice": [1]}}}), "nothing is left to"),
        (make(seed=-1), "seed: input should be greater than or equal to 0"),
        (make({"space": {RATE: {"uniform": [-1, 1]}}}), "policy.learning_rate: input should be"),
        (make({"space": {STEPS: {"uniform": [1, 4]}}}), "needs whole numbers, use randint"),
        (make({"space": {"critic.regulariser": {"choice": ["l2", "none"]}}}), "regulariser: input"),
        (make(scheduler="pbt"), "set sampler.num_steps=VALUE on the command line"),
        (
            make({"space": {RATE: {"uniform": [0.1, 1]}}}, scheduler="pbt", searcher="optuna"),
            "use --searcher random",
        ),
        (
            make({"space": {RATE: {"uniform": [0.1, 1]}}}, scheduler="pbt", num_trials=1),
            "at least 2 trials",
        ),
        (
            make({"space": {RATE: {"uniform": [0.1, 1]}}}, scheduler="pbt", final_seeds=2),
            "--final-seeds: under pbt rates change on the way",
        ),
    ],
)
def test_impossible_searches_are_refused_before_anything_starts(search: Search, expected: str):
    with pytest.raises(UserError) as caught:
        check_search(search, None)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_largest_trial_must_find_room():
    tree = {"space": {"rollout.num_workers": {"grid": [1, 2]}, RATE: TREE["space"][RATE]}}
    search = make(tree, "rollout.num_cpus_per_worker=0.5")
    check_room(search, {"a": Bundle(2, 0)})
    rates = {"space": {RATE: {"uniform": [0.1, 1]}}}
    alone = ("learner.num_cpus=0.5", "rollout.num_workers=0")
    population = make(rates, *alone, scheduler="pbt", num_trials=4)
    check_room(population, {"a": Bundle(1, 0), "b": Bundle(1, 0)})
    with pytest.raises(UserError, match=r"no room for all 4 trials at once.*: a has 1\.5 CPUs;"):
        check_room(population, {"a": Bundle(1.5, 0)})
    check_room(search, {"a": Bundle(1, 0), "b": Bundle(1, 0)})
    with pytest.raises(UserError, match=r"no room for 2 workers with 0.5 CPUs each .* a has 1 CPU"):
        check_room(search, {"a": Bundle(1, 0)})
    with pytest.raises(UserError, match="no room for 2 workers"):
        check_room(search, {"a": Bundle(1.25, 0), "b": Bundle(0.25, 0)})
    with pytest.raises(UserError, match="no node has the 1 CPU and 1 GPU asked for: a has 8 CPUs"):
        check_room(make(tree, "learner.num_gpus=1"), {"a": Bundle(8, 0)})


def test_records_survive_on_disk(tmp_path: Path):
    values = {RATE: 1.25e-5, STEPS: 2}
    record = Record(7, values, seed=1, state="running", curve=((25, 0.5), (50, 0.25)))
    Records(tmp_path).put(record)
    assert Records(tmp_path).all() == [record]
