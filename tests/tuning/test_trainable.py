"""Searches from Python, in a Ray of the user's that goes on: a Tuner of one's own, and ours."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from users_ray import UsersRay

import sft_rl
from sft_rl.config.files import with_overrides
from tuning.search import Search

SCRIPT = """
import json, sys
from pathlib import Path

import ray
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining

import sft_rl

out, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
config = sft_rl.load_config("swiss_roll", settings)


def fit(name, space, scheduler=None, **place):
    choosing = tune.TuneConfig(metric="distance", mode="min", scheduler=scheduler)
    place = tune.RunConfig(name=name, verbose=0, **({"storage_path": str(out)} | place))
    tuner = tune.Tuner(
        sft_rl.tune.trainable(config), param_space=space, tune_config=choosing, run_config=place
    )
    return tuner.fit()


half = {"learner.num_cpus": 0.5, "rollout.num_cpus_per_worker": 0.5, "rollout.num_workers": 1}
stored = PyFileSystem(FSSpecHandler(DirFileSystem(str(out), LocalFileSystem(auto_mkdir=True))))
found = fit(
    "grid",
    {**half, "sampler.num_steps": tune.grid_search([2, 3])},
    storage_path="stored",  # as in an object store: no trial sees it as a folder
    storage_filesystem=stored,
)
try:
    wrong = fit("wrong", {"sampler.steps": 3})
except Exception as error:
    wrong = error
rates = {"policy.learning_rate": tune.loguniform(1e-5, 1e-2)}
population = fit(
    "population",
    {"policy.learning_rate": tune.grid_search([1e-2, 1e-5])},
    PopulationBasedTraining(
        "iteration", perturbation_interval=2, hyperparam_mutations=rates, quantile_fraction=0.5
    ),
)


def search(**options):  # of an algorithm of one's own, with a network, a buffer and options
    return sft_rl.search(
        "swiss_roll",
        {"options.q_steps": {"grid": [1, 2, 3]}},
        [*settings, "algorithm=examples.replay_q:ReplayQ", "options.capacity=80"],
        out=out / "ours",
        final_seeds=0,
        max_concurrent=1,
        metric="recall",
        **options,
    )


begun = search(num_trials=5, time_budget=1e-3)
searched = search(num_trials=2, resume=True)
assert ray.is_initialized()
found_by_steps = {one.config["sampler.num_steps"]: one for one in found}
Path(out / "found.json").write_text(
    json.dumps(
        {
            "runs": {steps: f"{out}/{one.path}/run" for steps, one in found_by_steps.items()},
            "metrics": {steps: one.metrics for steps, one in found_by_steps.items()},
            "wrong": str(wrong),
            "population": [one.metrics["percent"] for one in population],
            "begun": len(begun.results),
            "validation": searched.results["validation"].tolist(),
            "trials": searched.results["options.q_steps"].tolist(),
            "best": searched.best[4].options["q_steps"],
        },
        default=str,
    )
)
"""


@pytest.mark.ray
def test_trials_of_ones_own_tuner_are_the_main_job(
    tmp_path: Path, tiny_settings: tuple[str, ...], in_users_ray: UsersRay
):
    (tmp_path / "script.py").write_text(SCRIPT)
    in_users_ray(tmp_path / "script.py", str(tmp_path), json.dumps(tiny_settings))
    found = json.loads((tmp_path / "found.json").read_text())
    alone = sft_rl.load_config("swiss_roll", [*tiny_settings, "sampler.num_steps=3"])
    mine = sft_rl.fine_tune(alone, out=tmp_path / "alone", observer=None)
    trial = sft_rl.load_result(found["runs"]["3"])
    assert trial.metrics["policy_sha256"] == mine.metrics["policy_sha256"]
    told = found["metrics"]["3"]
    assert told["final/precision"] == mine.metrics["final"]["precision"]
    assert told["distance"] == told["two_sample"] == mine.history["two_sample"].dropna().iloc[-1]
    assert (told["percent"], told["iteration"]) == (100.0, 3)
    assert "sampler.steps: unknown setting; did you mean" in found["wrong"]
    assert found["population"] == [100.0, 100.0]
    assert (found["begun"], found["trials"]) == (1, [1, 2])
    for index, validation in enumerate(found["validation"]):
        recall = sft_rl.load_result(tmp_path / "ours" / "trials" / f"{index:03d}").history["recall"]
        assert validation == pytest.approx(1.0 - recall.dropna().iloc[-1], abs=1e-12)
    assert found["best"] in found["trials"]
    assert Search.load(tmp_path / "ours").final_seeds == 0


def test_only_what_is_searched_changes(load_tiny: Callable[..., sft_rl.Config]):
    config = load_tiny("seed=7")
    changed = with_overrides(config, ["policy.learning_rate=0.5"])
    assert changed.policy.learning_rate == 0.5
    same = {**changed.model_dump(), "policy": config.policy.model_dump()}
    assert same == config.model_dump()
    assert changed.own_keys == (*config.own_keys, "policy.learning_rate")


@pytest.fixture
def load_tiny(tiny_settings: tuple[str, ...]) -> Callable[..., sft_rl.Config]:
    return lambda *own: sft_rl.load_config("swiss_roll", [*tiny_settings, *own])


def test_a_search_is_refused_before_ray_starts(tmp_path: Path):
    space = {"policy.learning_rate": {"loguniform": [1e-5, 1e-3]}}
    for given, message in (
        ({"num_trials": 0}, "--num-trials: must be at least 1, got 0"),
        ({"num_trials": 2, "seeds": 0}, "--seeds: must be at least 1"),
        ({"num_trials": 2, "time_budget": 0}, "--time-budget: must be longer than 0 s, got 0"),
        ({"num_trials": 2, "metric": "fid"}, "--metric: 'fid' is not measured by evaluations"),
        ({"num_trials": 2, "overrides": ["policy.learning_rate=1"]}, "nothing is left to search"),
    ):
        with pytest.raises(sft_rl.UserError, match=message):
            sft_rl.search("swiss_roll", space, out=tmp_path / "new", **given)
        assert not (tmp_path / "new").exists()
