"""Search spaces: what is drawn, and what is refused in one line."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from sft_rl.errors import UserError
from tuning.space import Distribution, load_space, parse_space, space_names


def space(**distributions: object) -> dict[str, object]:
    names = {"rate": "policy.learning_rate", "steps": "sampler.num_steps"}
    return {"space": {names.get(key, key): value for key, value in distributions.items()}}


def test_draws_lie_within_bounds_and_reach_both_ends():
    rng = np.random.default_rng(0)
    whole = [Distribution("randint", (1, 3)).sample(rng) for _ in range(100)]
    assert set(whole) == {1, 2, 3}
    assert all(type(value) is int for value in whole)
    rates = [Distribution("loguniform", (1e-5, 1e-1)).sample(rng) for _ in range(1000)]
    assert 1e-5 <= min(rates) < max(rates) <= 1e-1
    # Half of the draws lie below the geometric mean of the bounds.
    assert 430 < sum(rate < 1e-3 for rate in rates) < 570
    flat = [Distribution("uniform", (2.0, 4.0)).sample(rng) for _ in range(1000)]
    assert 2.9 < np.mean(flat) < 3.1
    options = {Distribution("choice", ("a", "b")).sample(rng) for _ in range(50)}
    assert options == {"a", "b"}


def test_grid_lists_all_combinations_in_order():
    parsed = parse_space("x", space(steps={"grid": [2, 4]}, algorithm={"grid": ["ppo", "sft_pg"]}))
    assert parsed.grid == [
        {"sampler.num_steps": 2, "algorithm": "ppo"},
        {"sampler.num_steps": 2, "algorithm": "sft_pg"},
        {"sampler.num_steps": 4, "algorithm": "ppo"},
        {"sampler.num_steps": 4, "algorithm": "sft_pg"},
    ]


@pytest.mark.parametrize("name", space_names())
def test_ready_spaces_are_valid_and_survive_a_round_trip(name: str):
    loaded = load_space(name)
    again = parse_space(name, yaml.safe_load(yaml.safe_dump(loaded.to_tree())))
    assert again == loaded


def test_yaml_exponents_are_numbers(tmp_path: Path):
    file = tmp_path / "space.yaml"
    file.write_text("space:\n  policy.learning_rate: {loguniform: [1e-5, 1e-3]}\n")
    assert load_space(str(file)).distributions["policy.learning_rate"].values == (1e-5, 1e-3)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (space(**{"policy.learning_rat": {"uniform": [0, 1]}}), "'policy.learning_rate'"),
        (space(**{"num_steps": {"grid": [2]}}), "did you mean 'sampler.num_steps'"),
        (space(rate={"logunifrom": [1e-5, 1]}), "did you mean 'loguniform'"),
        (space(rate={"loguniform": [0, 1]}), "above 0, got [0, 1]"),
        (space(rate={"uniform": [1, 0.1]}), "wrong way round, got [1, 0.1]"),
        (space(rate={"uniform": [1]}), "two numbers [low, high]"),
        (space(steps={"randint": [1.5, 3]}), "two whole numbers"),
        (space(steps={"grid": []}), "at least one value"),
        (space(steps={"choice": [2, 2]}), "lists a value twice"),
        (space(rate=3), "expected one of {choice"),
        ({"space": {}}, "the space is empty"),
        ({"spaces": {}}, "expected a mapping 'space'"),
        (None, "expected a mapping 'space'"),
        ({**space(steps={"grid": [2]}), "setting": {}}, "did you mean 'settings'"),
        ({**space(steps={"grid": [2]}), "settings": {"seeed": 1}}, "did you mean 'seed'"),
        (
            {**space(steps={"grid": [2]}), "settings": {"sampler.num_steps": 1}},
            "both in 'settings' and in 'space'",
        ),
        (space(seed={"randint": [0, 3]}), "--seeds gives every configuration several"),
        (space(**{"metrics.seed": {"randint": [0, 3]}}), "protocols are not compared"),
        (space(**{"data.noise": {"uniform": [0, 1]}}), "different data are not compared"),
    ],
)
def test_wrong_spaces_are_refused_in_one_line(tree: object, expected: str):
    with pytest.raises(UserError) as caught:
        parse_space("file.yaml", tree)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_names_and_files_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="did you mean 'lr_steps'"):
        load_space("lr_step")
    with pytest.raises(UserError, match="cannot read"):
        load_space(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("space: [")
    with pytest.raises(UserError, match="not valid YAML"):
        load_space(str(tmp_path / "bad.yaml"))
