"""Search spaces: what is drawn, and what is refused in one line."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from sft_rl.errors import UserError
from tuning.distribution import Distribution, parse_distribution
from tuning.space import load_space, parse_space, space_names


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


def test_steps_and_whole_numbers_on_a_log_axis():
    rng = np.random.default_rng(0)
    for given, options in (
        ({"uniform": [0.1, 0.5], "step": 0.2}, [0.1, 0.3, 0.5]),
        ({"uniform": [0, 1], "step": 0.3}, [0.0, 0.3, 0.6, 0.9]),  # the upper bound is none of them
        ({"randint": [64, 256], "step": 64}, [64, 128, 192, 256]),
        ({"lograndint": [1, 4]}, [1, 2, 3, 4]),
        ({"loguniform": [0.5, 2.5], "step": 1}, [0.5, 1.5, 2.5]),
    ):
        found = parse_distribution("x", given)
        drawn = [found.sample(rng) for _ in range(200)]
        assert sorted(set(drawn)) == found.options == options
        assert all(type(value) is type(options[0]) for value in drawn)
        assert found.num_values == len(options)
        assert all(found.contains(value) for value in options)
    assert not parse_distribution("x", {"randint": [64, 256], "step": 64}).contains(100)
    whole = Distribution("lograndint", (1, 10_000))
    assert 430 < sum(whole.sample(rng) <= 100 for _ in range(1000)) < 570


CONDITIONAL = space(
    algorithm={"grid": ["ppo", "sft_pg"]},
    **{
        "ppo.num_epochs": {"grid": [1, 2], "when": {"algorithm": "ppo"}},
        "sft_pg.baseline": {"choice": ["value", "lookahead"], "when": {"algorithm": ["sft_pg"]}},
        "value.learning_rate": {"loguniform": [1e-3, 1e-2], "when": {"sft_pg.baseline": "value"}},
    },
)


def test_a_key_may_belong_to_one_choice_of_another():
    parsed = parse_space("x", CONDITIONAL)
    assert parse_space("x", parsed.to_tree()) == parsed
    assert parsed.grid == [
        {"algorithm": "ppo", "ppo.num_epochs": 1},
        {"algorithm": "ppo", "ppo.num_epochs": 2},
        {"algorithm": "sft_pg"},
    ]
    rng = np.random.default_rng(0)
    drawn = [parsed.filled(p, lambda _, d: d.sample(rng)) for p in parsed.grid * 20]
    for values in drawn:
        assert ("ppo.num_epochs" in values) == (values["algorithm"] == "ppo")
        assert ("value.learning_rate" in values) == (values.get("sft_pg.baseline") == "value")
    assert {values.get("sft_pg.baseline") for values in drawn} == {None, "value", "lookahead"}
    assert parsed.needed("value.learning_rate") == {
        "algorithm": "sft_pg",
        "sft_pg.baseline": "value",
    }


def test_a_fixed_key_decides_which_conditions_hold():
    parsed = parse_space("x", CONDITIONAL)
    ppo, pg = parsed.without({"algorithm": "ppo"}), parsed.without({"algorithm": "sft_pg"})
    assert [*ppo.distributions] == ["ppo.num_epochs"]
    assert ppo.distributions["ppo.num_epochs"].when == {}
    assert [*pg.distributions] == ["sft_pg.baseline", "value.learning_rate"]
    assert pg.distributions["value.learning_rate"].when == {"sft_pg.baseline": ("value",)}


def test_a_file_holds_the_constants_of_the_schedulers():
    tree = {**space(steps={"grid": [2, 4]}), "asha": {"reduction_factor": 2, "brackets": 2}}
    parsed = parse_space("x", tree)
    assert (parsed.asha.reduction_factor, parsed.asha.brackets) == (2.0, 2)
    assert (parsed.asha.grace_percent, parsed.pbt.quantile_fraction) == (10.0, 0.25)
    assert parse_space("x", parsed.to_tree()) == parsed


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
        (space(rate={"uniform": [0, 1], "step": 2}), "at most 1, the distance between the bounds"),
        (space(steps={"randint": [1, 9], "step": 0.5}), "'step' must be a whole number"),
        (space(steps={"grid": [2, 4], "step": 2}), "'step' goes between two bounds"),
        (space(steps={"lograndint": [0, 4]}), "above 0, got [0, 4]"),
        (space(steps={"grid": [2]}, rate={"choice": [1], "when": 2}), "'when' must be a mapping"),
        (space(rate={"choice": [1], "when": {"seed": 1}}), "'when' names 'seed', which must be"),
        (
            space(steps={"grid": [2]}, rate={"choice": [1], "when": {"sampler.num_steps": [2, 3]}}),
            "'when' sampler.num_steps is 3, which the search never takes",
        ),
        (
            space(
                algorithm={"choice": ["ppo", "sft_pg"]},
                rate={"grid": [1], "when": {"algorithm": "ppo"}},
            ),
            "cannot depend on 'algorithm'; make that a grid",
        ),
        ({"space": {}}, "the space is empty"),
        ({"spaces": {}}, "expected a mapping 'space'"),
        (None, "expected a mapping 'space'"),
        ({**space(steps={"grid": [2]}), "setting": {}}, "did you mean 'settings'"),
        ({**space(steps={"grid": [2]}), "settings": {"seeed": 1}}, "did you mean 'seed'"),
        (
            {**space(steps={"grid": [2]}), "settings": {"sampler.num_steps": 1}},
            "both in 'settings' and in 'space'",
        ),
        ({**space(steps={"grid": [2]}), "asha": {"brackets": 0}}, "asha.brackets: input should be"),
        ({**space(steps={"grid": [2]}), "pbt": {"quantile": 1}}, "pbt.quantile"),
        ({**space(steps={"grid": [2]}), "pbt": 3}, "pbt"),
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
