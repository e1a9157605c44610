"""Settings: documented, checked, and what a run writes down it can read again."""

from pathlib import Path

import pytest

from sft_rl.config.files import all_keys, dump_config, load_config, load_config_file, preset_names
from sft_rl.errors import UserError


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sampler.num_stepz=3", "did you mean 'sampler.num_steps'"),
        ("num_steps=3", "did you mean 'sampler.num_steps'"),
        ("sampler=3", "is a section"),
        ("seed", "key=value"),
        ("seed=abc", "seed: .*integer.*got 'abc'"),
        ("sampler.num_steps=0", "sampler.num_steps: .*1, got 0"),
        ("sampler.num_steps=1001", "sampler.num_steps: .*1000, got 1001"),
        ("sampler.schedule=fast", "sampler.schedule: .*got 'fast'"),
        ("sampler.timesteps=[1,2]", "sampler.timesteps: .*decrease"),
        ("data.name=file", "data.path: .*needs a path"),
        ("critic.learning_rate=-1", "critic.learning_rate: .*greater than 0, got -1"),
        ("seed=[1", "seed: cannot read"),
    ],
)
def test_bad_settings_are_one_line_that_names_the_field(setting: str, message: str):
    with pytest.raises(UserError, match=message) as error:
        load_config("swiss_roll", [setting])
    assert "\n" not in str(error.value)


def test_unknown_presets_are_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'swiss_roll'"):
        load_config("swissroll")


@pytest.mark.parametrize(("text", "value"), [("false", False), ("true", True), ("False", False)])
def test_false_is_false(text: str, value: bool):
    assert load_config("swiss_roll", [f"data.flip={text}"]).data.flip is value


def test_scientific_notation_is_a_number():
    assert load_config("swiss_roll", ["policy.learning_rate=1e-5"]).policy.learning_rate == 1e-5


def test_a_list_of_times_sets_the_number_of_steps():
    sampler = load_config("swiss_roll", ["sampler.timesteps=[900,400.5,20]"]).sampler
    assert (sampler.num_steps, sampler.schedule) == (3, "timesteps")


@pytest.mark.parametrize("preset", preset_names())
def test_a_written_configuration_is_read_back(preset: str, tmp_path: Path):
    config = load_config(preset, ["seed=7"])
    assert config.preset == preset
    assert config.description
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config_file(str(tmp_path / "config.yaml")) == config


def test_the_users_settings_win_over_the_presets_conditions():
    """Blocks under `when` follow the step count; what the user says stands."""
    few = load_config("swiss_roll", ["sampler.num_steps=4"])
    own = load_config("swiss_roll", ["sampler.num_steps=4", "sampler.start_time=123"])
    assert few.sampler != load_config("swiss_roll").sampler
    assert own.sampler.start_time == 123


def test_every_setting_is_documented():
    assert [key for key, text in all_keys().items() if len(text) < 5] == []


def test_a_preset_extends_another_with_its_blocks():
    moons, roll = (load_config(n, ["sampler.num_steps=4"]) for n in ("two_moons", "swiss_roll"))
    assert moons.data.name == "two_moons"
    same = {"data": roll.data, "preset": roll.preset, "description": roll.description}
    assert moons.model_copy(update=same) == roll
    assert roll.critic.objective != load_config("swiss_roll").critic.objective
