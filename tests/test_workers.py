"""Rollout workers that are late, die, hang, fail or lie: see worker_scenarios.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from users_ray import NUM_CPUS, UsersRay

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def scenarios(
    tmp_path_factory: pytest.TempPathFactory, tiny_settings: tuple[str, ...], in_users_ray: UsersRay
) -> dict[str, Any]:
    script = Path(__file__).with_name("worker_scenarios.py")
    out = tmp_path_factory.mktemp("workers") / "results.json"
    in_users_ray(script, str(out), *tiny_settings, "rollout.shards_per_batch=4")
    results: dict[str, Any] = json.loads(out.read_text())
    return results


def test_any_number_of_workers_gives_the_same_policy(scenarios: dict[str, Any]):
    assert scenarios["sha256 0"] == scenarios["sha256 2"]


def test_so_they_do_while_the_learner_goes_on_and_a_scorer_dies(scenarios: dict[str, Any]):
    overlapped = scenarios["overlapped"]
    assert overlapped["died"]
    assert overlapped["here"] == overlapped["scorers"]


def test_shards_in_any_order_are_the_same(scenarios: dict[str, Any]):
    assert scenarios["undisturbed"]["same"] == [True] * 8


@pytest.mark.parametrize(
    ("scenario", "word"), [("killed", "died"), ("hung", "has not answered for 6 s")]
)
def test_a_lost_worker_is_replaced_and_its_shards_are_the_same(
    scenarios: dict[str, Any], scenario: str, word: str
):
    result = scenarios[scenario]
    assert result["same"] == [True] * 8
    assert result["replaced"] == 1
    assert word in result["warnings"][0]


@pytest.mark.parametrize(
    ("scenario", "words", "replaced"),
    [
        ("faulty", "a worker failed: ArithmeticError: is broken", 0),
        ("faulty start", "no worker could start: ArithmeticError: no such env", 0),
        ("stillborn", "3 workers in a row were lost before they had started, the last one died", 2),
        ("nowhere", f"for 1 s; is there a node with room for {2 * NUM_CPUS} CPU and 0 GPU?", 0),
        ("forgetful", "answered with weights 4, asked for 5; its trajectories are refused", 0),
    ],
)
def test_what_another_worker_would_not_cure_stops_the_run(
    scenarios: dict[str, Any], scenario: str, words: str, replaced: int
):
    result = scenarios[scenario]
    assert words in result["text"]
    assert len(result["text"].splitlines()) == 1
    assert result["exit_code"] == 1
    assert result["replaced"] >= replaced


def test_one_put_a_version_one_answer_a_shard_and_little_more_than_the_trajectories(
    scenarios: dict[str, Any],
):
    counts = scenarios["traffic"]
    assert counts["puts"] == 2
    assert counts["answers"] == 3 * 8
    assert counts["own_bytes"] < counts["bytes"] <= 1.05 * counts["own_bytes"]


def test_one_that_has_no_place_gets_no_shards_and_is_told_of(scenarios: dict[str, Any]):
    assert scenarios["undisturbed"]["same"] == [True] * 8
    told = "a rollout worker has waited 0 s for a place on a node; those that have one do its work"
    assert set(scenarios["waiting"]) == {told}


def test_a_scorer_that_has_no_place_gets_no_batches(scenarios: dict[str, Any]):
    assert scenarios["crowded"]["one has"] == [[0.0, 2.0, 4.0]] * 3
    assert "no scorer has been free for -9 s; is there a node" in scenarios["crowded"]["none has"]


def test_what_is_drawn_ahead_does_not_wait_for_the_learner(scenarios: dict[str, Any]):
    assert scenarios["ahead"] == {"handed out": 8, "kept": 0}
