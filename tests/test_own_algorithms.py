"""Algorithms with a memory: it is in checkpoints, and one that is not declared is found."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from sft_rl import check_resumes
from sft_rl.cli import main
from sft_rl.config import ResolvedConfig
from sft_rl.config.files import load_config
from sft_rl.errors import UserError
from sft_rl.learning.optim import accumulate
from sft_rl.rewards import build_objective, handed_over
from sft_rl.runs.resolve import resolve
from sft_rl.storage.metrics_log import MetricsLog
from sft_rl.storage.state import kept_state, load_kept_state
from sft_rl.types import Loss

TinyConfig = Callable[..., ResolvedConfig]
MODULE = """
from examples.batch_baseline import BatchBaseline
from examples.own_critic import LeastSquaresCritic
from examples.running_baseline import RunningBaseline
from sft_rl.types import Loss


class Forgetful(RunningBaseline):
    def state(self):
        return {}


class Moody(BatchBaseline):
    calls = 0

    def loss(self, batch, networks):
        loss = super().loss(batch, networks)
        self.calls += 1
        extra = {"seldom": 1.5} if self.calls == 2 else {}
        return Loss(loss.value, {**loss.metrics, **extra})


class Patient(LeastSquaresCritic):
    # It scores nothing at first, and counts by itself how long.

    num_seen = 0

    def forward(self, x):
        return super().forward(x) * min(self.num_seen / 8, 1.0)

    def after_step(self):
        self.num_seen += 1

    def state(self):
        return {"num_seen": self.num_seen}


def sour(x):
    if len(x) > 2:  # not the two samples that are tried first
        raise KeyError("taste")
    return x[:, 0]


class Broken(BatchBaseline):
    def loss(self, batch, networks):
        return self.helper(batch)

    def helper(self, batch):
        raise ValueError("no such thing")
"""


class Novelty:
    """Pays for what lies far from the mean of all that it has seen."""

    def __init__(self) -> None:
        self.num, self.sum = 0, torch.zeros(2)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        scores = (x - self.sum / max(self.num, 1)).norm(dim=1)
        self.num, self.sum = self.num + len(x), self.sum + x.sum(0)
        return scores

    def state(self) -> dict[str, object]:
        return {"num": self.num, "sum": self.sum}


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "memories.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        ("algorithm=examples.running_baseline:RunningBaseline",),
        ("algorithm=examples.clip_higher:ClipHigher", "rollout.group_size=4"),
        ("algorithm=examples.replay_q:ReplayQ", "options.capacity=80"),
        ("algorithm=nft",),
        (
            *("algorithm=grpo", "rollout.group_size=4", "rollout.branch_step=cycle"),
            *("grpo.window_eta=0.7", "sampler.eta=0", "sampler.final_std=0"),
            "sampler.learn_std=false",
        ),
    ],
)
def test_those_with_a_memory_resume_to_the_same_bits(
    settings: tuple[str, ...], tiny_settings: tuple[str, ...]
):
    check_resumes(load_config("swiss_roll", [*tiny_settings, *settings]))


def test_what_rewards_and_critics_declare_is_kept(tiny_settings: tuple[str, ...]):
    critic = "critic.objective=memories:Patient"
    config = load_config("swiss_roll", [*tiny_settings, critic])
    check_resumes(config, reward=["critic", {"use": Novelty, "weight": 0.5}])
    elsewhere = {"use": Novelty, "num_scorers": 1}
    with pytest.raises(UserError, match="'Novelty' keeps a state, so it is scored here"):
        resolve(config, reward=["critic", elsewhere])


def test_looking_at_a_reward_leaves_what_it_keeps():
    settings, own = handed_over(Novelty)
    objective = build_objective(settings, own, options={}, num_classes=0, device="cpu")
    objective.fixed_scores(torch.ones(4, 2))
    objective.looked_at(torch.ones(8, 2))
    assert objective.state()["Novelty.num@number"] == 4


def test_learners_do_not_split_networks_that_they_do_not_know(tiny_settings: tuple[str, ...]):
    team = ("learner.launcher=ray_train", "learner.num_workers=2", "learner.strategy=fsdp")
    with pytest.raises(UserError, match=r"fsdp does not go with algorithm=memories:Forgetful"):
        resolve(load_config("swiss_roll", [*tiny_settings, *team, "algorithm=memories:Forgetful"]))


def test_what_is_not_declared_is_found(tiny_settings: tuple[str, ...]):
    config = load_config("swiss_roll", [*tiny_settings, "algorithm=memories:Forgetful"])
    with pytest.raises(AssertionError, match=r"resumed, iteration 3 has another .*state\(\)"):
        check_resumes(config)


def test_an_own_error_is_one_line_and_a_file(
    tmp_path: Path, tiny_settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    words = ["train", "swiss_roll", *tiny_settings, "algorithm=memories:Broken"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 1
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "failed" in text]
    assert "helper (" in line and "memories.py, line 49) failed" in line
    assert "ValueError: no such thing" in line and str(tmp_path / "run" / "error.txt") in line
    assert "raise ValueError" in (tmp_path / "run" / "error.txt").read_text()


def test_so_is_that_of_a_reward(
    tmp_path: Path, tiny_settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    words = ["train", "swiss_roll", *tiny_settings, "reward=memories:sour"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 1
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "failed" in text]
    assert re.search(
        r"'sour' failed in memories.py:\d+, sour: KeyError: 'taste'; its traceback", line
    )
    assert 'raise KeyError("taste")' in (tmp_path / "run" / "error.txt").read_text()


def test_metrics_come_and_go(tmp_path: Path, tiny_settings: tuple[str, ...]):
    words = ["train", "swiss_roll", *tiny_settings, "algorithm=memories:Moody"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    seen = pd.read_csv(tmp_path / "run" / "metrics.csv")["seldom"]
    np.testing.assert_array_equal(seen, [np.nan, 1.5, np.nan])


def test_a_late_column_survives_a_cut(tmp_path: Path):
    log = MetricsLog(tmp_path / "metrics.csv")
    log.append({"iteration": 1, "a": 0.5})
    log.append({"iteration": 2, "b": 2.0})
    log.cut(1)
    log.append({"iteration": 2, "a": 1.0, "c": 3.0})
    text = (tmp_path / "metrics.csv").read_text().split()
    assert text == ["iteration,a,b,c", "1,0.5,,", "2,1.0,,3.0"]


def test_parts_that_lack_a_number_do_not_count_for_it():
    weight = torch.ones(1, requires_grad=True)
    parts = [
        (Loss(weight.sum(), {"a": 2.0, "b": 8.0}), 0.25),
        (Loss(weight.sum(), {"a": 4.0}), 0.75),
    ]
    joined = accumulate(parts).metrics
    assert (float(joined["a"]), float(joined["b"])) == (3.5, 8.0)


class Keeper:
    """Something of each kind."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.net = nn.Linear(2, 1)
        self.optimizer = torch.optim.Adam(self.net.parameters())
        self.net(torch.ones(1, 2)).sum().backward()
        self.optimizer.step()
        self.declared = {"t": torch.rand(2), "a": np.arange(3) + seed, "i": seed, "f": seed / 3}

    def state(self) -> dict[str, object]:
        return self.declared

    def load_state(self, state: dict[str, object]) -> None:
        self.declared = state


def test_state_comes_back_as_what_it_was():
    one, other = Keeper(1), Keeper(2)
    load_kept_state(other, kept_state(one))
    assert torch.equal(one.net.weight, other.net.weight)
    moments = [k.optimizer.state[k.net.weight]["exp_avg"] for k in (one, other)]
    assert torch.equal(*moments)
    assert {k: type(v) for k, v in other.declared.items()} == {
        "t": torch.Tensor, "a": np.ndarray, "i": int, "f": float
    }  # fmt: skip
    assert (other.declared["i"], other.declared["f"]) == (1, 1 / 3)
    other.declared = {"words": "no"}
    with pytest.raises(UserError, match=r"Keeper.state: 'words' is a str; tensors, arrays"):
        kept_state(other)
    other.declared = {"else": 1}
    with pytest.raises(UserError, match=r"Keeper.state: declares \['else'\], the checkpoint has"):
        load_kept_state(other, kept_state(one))
