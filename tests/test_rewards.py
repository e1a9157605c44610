"""Rewards: what they get, what is checked, how often they are asked, what is chosen by them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sft_rl
from sft_rl.config import ResolvedConfig, Samples, TermConfig
from sft_rl.config.files import load_config
from sft_rl.data.units import Units
from sft_rl.errors import UserError
from sft_rl.learning.monitors import critic_slope
from sft_rl.rewards import Objective, Reward, Term
from sft_rl.rewards.normalise import Normaliser
from sft_rl.runs.parts import network_of, networks_of, objective_of
from sft_rl.runs.resolve import resolve
from sft_rl.types import Trajectories

TinyConfig = Callable[..., ResolvedConfig]
POINTS = Units(Samples(shape=(2,), shift=(1.0, 0.0), scale=(2.0, 1.0), fingerprint=""))
IMAGES = Units(Samples(shape=(1, 4, 4), shift=(8.0,), scale=(8.0,), pixel_max=16, fingerprint=""))
X = torch.tensor([[0.5, 1.0], [-1.0, 2.0], [0.25, -1.0]])


def plain(x: Tensor) -> Any:
    return x[:, 0].numpy()


@sft_rl.reward(has_gradient=True)
def bent(x: Tensor) -> Tensor:
    return x.square().sum(1)


class Slope(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[:, 0]


def bad_shape(x: Tensor) -> Tensor:
    return x


def not_finite(x: Tensor) -> Tensor:
    return torch.where(torch.arange(len(x)) == 1, torch.nan, x[:, 0])


def wrong(x: Tensor) -> Tensor:
    raise KeyError("height")


def labelled(x: Tensor, labels: Tensor) -> Tensor:
    return labels.float()


def text(x: Tensor) -> str:
    return "much"


@sft_rl.reward(has_gradient=True)
def flat(x: Tensor) -> Tensor:
    return torch.zeros(len(x))


def test_a_reward_gets_what_it_declares():
    assert Reward(lambda x: x[:, 0], name="r")(X).tolist() == X[:, 0].tolist()
    data = sft_rl.reward(wants="data")(lambda x: x[:, 0])
    assert Reward(data, name="r", units=POINTS)(X).tolist() == [2.0, -1.0, 1.5]

    def of_arrays(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        assert (type(x), x.dtype, type(labels)) == (np.ndarray, np.uint8, np.ndarray)
        return x.reshape(len(x), -1).max(1) + labels

    images, labels = torch.linspace(-1, 1, 48).reshape(3, 1, 4, 4), torch.tensor([0, 10, 20])
    arrays = sft_rl.reward(wants="numpy")(of_arrays)
    scores = Reward(arrays, name="r", units=IMAGES, num_classes=30)(images, labels)
    assert scores.tolist() == [5.0, 21.0, 36.0]

    def of_pictures(pictures: list[Image.Image]) -> list[float]:
        return [picture.size[0] + picture.getpixel((3, 3))[1] for picture in pictures]

    pictures = sft_rl.reward(wants="pil")(of_pictures)
    assert Reward(pictures, name="r", units=IMAGES)(images)[-1] == 4 + 255


def test_a_reward_gets_a_gradient_only_if_it_asks():
    x = X.clone().requires_grad_()
    assert not Reward(plain, name="r")(x).requires_grad
    module = Slope()
    assert not Reward(module, name="r")(x).requires_grad
    assert not any(p.requires_grad for p in module.parameters())
    (slope,) = torch.autograd.grad(Reward(bent, name="r")(x).sum(), x)
    torch.testing.assert_close(slope, 2.0 * X)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (bad_shape, r"'r' returned shape \(3, 2\) for 3 samples, expected \(3,\)"),
        (not_finite, r"'r' returned nan, .* sample 1 of 3: \[-1, 2\]"),
        (wrong, r"'r' failed in test_rewards.py:\d+, wrong: KeyError: 'height'"),
        (text, r"'r' returned str, expected numbers of shape \(3,\)"),
        (labelled, "'r' needs labels, but the model is not conditional"),
        (sft_rl.reward(wants="pil")(lambda x: x), "'r' wants 'pil', but samples are points"),
        (sft_rl.reward(wants="pictures")(lambda x: x), "'r' wants 'pictures'; choose from"),
        (5, "'r' cannot be called, got 5"),
    ],
)
def test_what_is_wrong_with_a_reward_is_one_line(reward: Any, message: str):
    with pytest.raises(UserError, match=message) as error:
        Reward(reward, name="r", units=POINTS)(X)
    assert "\n" not in str(error.value)


def test_normalisations_in_closed_form():
    scores, labels = torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([0, 0, 0, 1])
    batch = Normaliser("batch")
    assert torch.equal(batch(scores), scores)  # nothing seen yet
    for _ in range(2):
        batch.observe(scores)
        standard = batch(scores)
        assert standard.mean().item() == pytest.approx(0.0, abs=1e-6)
        assert standard.std().item() == pytest.approx(1.0)
    running, halves = Normaliser("running"), Normaliser("running")
    running.observe(scores)
    for half in (scores[:2], scores[2:]):
        halves.observe(half)
    torch.testing.assert_close(running.moments, halves.moments)
    by_label = Normaliser("per_label", num_classes=2)
    by_label.observe(scores, labels)
    assert by_label(scores, labels).tolist() == [-1.0, 0.0, 1.0, 0.0]


def test_the_objective_is_the_weighted_sum(tiny_config: TinyConfig):
    terms = [
        Term(TermConfig(weight=2.0)),
        Term(TermConfig(use="m:bent", weight=-1.0), Reward(bent, name="bent")),
        Term(TermConfig(use="m:plain", weight=10.0), Reward(plain, name="plain"), False),
    ]
    networks = networks_of(tiny_config(), network_of(tiny_config()), Objective(terms))
    x = X.clone().requires_grad_()
    live = 2.0 * networks.critic(x) - bent(x)
    torch.testing.assert_close(networks.score(x), live)
    (slope,) = torch.autograd.grad(networks.score(x).sum(), x)
    assert slope.abs().sum() > 0
    drawn = Trajectories(X[None].repeat(2, 1, 1), torch.zeros(1, 3), X[:, 0][None], 0)
    torch.testing.assert_close(networks.scores(drawn), live + 10.0 * X[:, 0])
    only = replace(networks, objective=Objective(terms[2:]))
    torch.testing.assert_close(only.scores(drawn), 10.0 * X[:, 0])
    assert only.score(X).tolist() == [0.0] * 3
    assert critic_slope(drawn, only) == {}


CALLS: Counter[int] = Counter()


def counting(x: Tensor) -> Tensor:
    CALLS[len(x)] += 1
    return x[:, 0]


@pytest.mark.parametrize("settings", [("reward=",), ("reward.terms=[critic, ", "]")])
def test_each_trajectory_is_scored_once(
    tmp_path: Path, tiny_settings: tuple[str, ...], settings: tuple[str, ...]
):
    """512 training trajectories: 2 iterations of 2 batches of 128; a warm-up that nobody scores."""
    CALLS.clear()
    own = f"{settings[0]}{__name__}:counting{settings[-1] if len(settings) > 1 else ''}"
    sizes = ("training.batch_size=128", "training.n_critic=2", "training.num_iterations=2")
    config = load_config(
        "swiss_roll", [*tiny_settings, own, *sizes, "reward.num_scored=50", "training.eval_every=1"]
    )
    result = sft_rl.fine_tune(config, out=tmp_path / "run", observer=None)
    # A look at two real samples; evaluations of the start, twice as the scale of the objective,
    # and after each iteration; the report, before and after.
    assert CALLS == {128: 4, 2: 1, 50: 2 + 2 + 2}
    assert {"term_counting", "objective", "validation_counting"} < set(result.history.columns)
    assert {"term_counting", "term_counting_se", "objective"} < set(result.metrics["final"])


def test_the_best_is_chosen_by_the_objective(tmp_path: Path, tiny_settings: tuple[str, ...]):
    """Not by the distance to data, which the reward leads away from."""
    settings = ["training.num_iterations=40", "training.select_best=true", "reward.num_scored=500"]
    config = load_config("swiss_roll", [*tiny_settings, *settings, "policy.learning_rate=1e-2"])
    with pytest.warns(
        UserWarning, match=r"'plain' may be hacked: it went from .* lower its weight"
    ):
        result = sft_rl.fine_tune(
            config, reward=plain, out=tmp_path / "run", observer=lambda *_: None
        )
    before, after = result.metrics["before"], result.metrics["final"]
    assert after["term_plain"] > before["term_plain"] + 0.5
    assert after["objective"] == after["term_plain"]
    assert after["two_sample"] > before["two_sample"]
    assert result.sampler.sample(500)[:, 0].mean() > 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["reward=foo"], "'foo' is unknown; use 'critic', your own 'module:function'"),
        (["reward=nowhere:f"], "cannot import 'nowhere'"),
        ([f"reward={__name__}:bad_shape"], r"'bad_shape' returned shape \(2, 2\)"),
        ([f"reward={__name__}:labelled"], "'labelled' needs labels"),
        ([f"reward={__name__}:flat"], "'flat' says has_gradient, but what it returns has none"),
        (["reward.terms=[critic, critic]"], "one critic"),
        (["reward.terms=[]"], "none has a weight"),
        ([f"reward.terms=[{{use: '{__name__}:plain', weight: .inf}}]"], r"weight: .* got inf"),
        (["reward.weights.plane=1"], r"'plane' is none of the terms \['critic'\]"),
        (["reward.terms=[{use: critic, normalise: per_label}]"], "not conditional on classes"),
        (["reward=own"], "handed over in Python"),
        ([f"reward={__name__}:plain", "algorithm=pathwise"], "'plain' has no gradient"),
        ([f"reward.terms=[critic, '{__name__}:plain']", "algorithm=pathwise"], "no gradient"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    tiny_settings: tuple[str, ...], settings: list[str], message: str
):
    with pytest.raises(UserError, match=message) as error:
        resolve(load_config("swiss_roll", [*tiny_settings, *settings]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("algorithm", ["pathwise", "hybrid"])
def test_a_reward_with_a_gradient_beside_the_critic(
    tmp_path: Path, tiny_settings: tuple[str, ...], algorithm: str
):
    own = f"reward.terms=[critic, {{use: '{__name__}:bent', weight: -5, normalise: running}}]"
    config = load_config("swiss_roll", [*tiny_settings, f"algorithm={algorithm}", own])
    result = sft_rl.fine_tune(config, out=tmp_path / "run", observer=None)
    assert result.metrics["final"]["term_bent"] < result.metrics["before"]["term_bent"]


def test_an_objective_keeps_what_its_normalisations_have_seen(tiny_config: TinyConfig):
    own = f"reward.terms=[critic, {{use: '{__name__}:plain', normalise: running}}]"
    first, second = (objective_of(tiny_config(own)) for _ in range(2))
    first.observe({"critic": X[:, 0], "plain": X[:, 1]})
    second.load_state(first.state())
    scores = {"critic": X[:, 0], "plain": X[:, 1]}
    assert torch.equal(first.total(scores), second.total(scores))
