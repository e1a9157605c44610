"""Options of a user's own classes: typed, checked, saved, overridden and searched."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sft_rl.cli import main
from sft_rl.config import ResolvedConfig
from sft_rl.config.files import load_config
from sft_rl.errors import UserError
from sft_rl.rewards import Reward
from sft_rl.rewards.parts import InParts
from sft_rl.runs.parts import algorithm_of, objective_of
from sft_rl.runs.resolve import resolve
from tuning.checks import check_search
from tuning.search import Search
from tuning.space import parse_space

MODULE = """
from pydantic import Field
from sft_rl import Section
from sft_rl.algorithms.sft_pg import SFTPG
from sft_rl.config import SFTPGConfig


class Mine(SFTPG):
    class Options(SFTPGConfig):
        group_size: int = Field(4, ge=1)
        "Trajectories of a group."


class Penalty:
    class Options(Section):
        weight: float = 0.5

    def __init__(self, options):
        self.weight = options.weight

    def __call__(self, samples):
        return -self.weight * samples.square().sum(1)


def plain(samples, options):
    return options.bias + samples[:, 0]


class Bias(Section):
    bias: float = 2.0


plain.Options = Bias


class Clash(Penalty):
    class Options(Section):
        group_size: int = 3
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "options_of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)


def reward_of(config: ResolvedConfig) -> Any:
    """The one reward that settings name, as it was made."""
    (term,) = objective_of(config).terms
    assert isinstance(term.score, InParts)
    assert isinstance(term.score.score, Reward)
    return term.score.score.function


OWN = ("algorithm=options_of_mine:Mine", "reward=options_of_mine:Penalty")


def test_they_are_typed_filled_in_and_given_to_whom_declares_them(tiny_settings: tuple[str, ...]):
    settings = [*tiny_settings, *OWN, "options.group_size=8", "options.baseline=value"]
    config, _ = resolve(load_config("swiss_roll", settings))
    assert (config.options["group_size"], config.options["weight"]) == (8, 0.5)
    algorithm = algorithm_of(config)
    assert (algorithm.options.group_size, algorithm.uses_value) == (8, True)
    assert reward_of(config).weight == 0.5
    config, _ = resolve(load_config("swiss_roll", [*tiny_settings, "reward=options_of_mine:plain"]))
    assert reward_of(config).keywords["options"].bias == 2.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((*OWN, "options.group_sise=8"), "options.group_sise: unknown option; did you mean"),
        ((*OWN, "options.group_size=0"), "options.group_size: .*greater than or equal to 1, got 0"),
        (("options.group_size=8",), "options.group_size: .* nothing of your own declares options"),
        (
            ("algorithm=options_of_mine:Mine", "reward=options_of_mine:Clash"),
            "options.group_size: options_of_mine:Clash and another declare it",
        ),
    ],
)
def test_wrong_ones_are_one_line(tiny_settings: tuple[str, ...], settings: object, message: str):
    with pytest.raises(UserError, match=message) as error:
        resolve(load_config("swiss_roll", [*tiny_settings, *settings]))
    assert "\n" not in str(error.value)


def test_a_run_keeps_them_and_refuses_others_on_resume(
    tmp_path: Path,
    tiny_settings: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    words = ["train", "swiss_roll", *tiny_settings, *OWN, "--out", str(tmp_path / "run")]
    assert main(words) == 0
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["options"]
    assert (kept["group_size"], kept["weight"]) == (4, 0.5)
    assert main([*words, "options.weight=0.7", "--resume"]) == 2
    (tmp_path / "options_of_mine.py").unlink()
    monkeypatch.delitem(sys.modules, "options_of_mine")
    sample = ["sample", str(tmp_path / "run"), "--num", "5", "--out", str(tmp_path / "x.npy")]
    assert main(sample) == 0  # imports nothing of the user's
    assert "options.weight was 0.5, now 0.7" in capsys.readouterr().err


def test_a_search_draws_them_and_begins_with_what_they_declare(tiny_settings: tuple[str, ...]):
    tree = {"space": {"options.group_size": {"randint": [2, 9]}}}
    settings = (*tiny_settings, *OWN)
    search = Search("swiss_roll", settings, parse_space("own", tree), num_trials=3, seed=0)
    check_search(search, None)
    assert search.planned(0) == {"options.group_size": 4}
    drawn = search.planned(1)["options.group_size"]
    assert search.config(search.planned(1)).options["group_size"] == drawn
