"""Points that are given some columns of their table: from the file to samples of a condition."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor, nn

from envs import DenoisingEnv, DenoisingVectorEnv
from envs.factory import env_arguments
from sft_rl.cli import main
from sft_rl.config.files import load_config
from sft_rl.data import dataset_of, load_dataset
from sft_rl.errors import UserError
from sft_rl.export.sampler import load_sampler
from sft_rl.jobs.build import build_runner
from sft_rl.policy import to_arrays
from sft_rl.runs.parts import full_step_network, learner_of, networks_of
from sft_rl.runs.resolve import resolve
from sft_rl.types import Trajectories

NUM = 1500


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Points around (dose, 3 - temperature / 100), so that their condition tells where they are."""
    source = np.random.default_rng(0)
    dose, heat = source.uniform(1.0, 2.0, NUM), source.integers(0, 4, NUM) * 100.0
    x, y = dose + 0.01 * source.normal(size=NUM), 3.0 - heat / 100.0
    return pd.DataFrame({"x": x, "dose": dose, "y": y + 0.01 * source.normal(size=NUM), "T": heat})


@pytest.fixture(scope="module")
def settings(
    table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory, tiny_settings: tuple[str, ...]
) -> list[str]:
    file = tmp_path_factory.mktemp("table") / "table.csv"
    table.to_csv(file, index=False)
    of_synthetic = "data.num_points=2000"
    tiny = [setting for setting in tiny_settings if setting != of_synthetic]
    return [*tiny, f"data.path={file}", "data.condition_columns=[T,dose]"]


def test_each_real_sample_comes_with_its_vector(settings: list[str], table: pd.DataFrame):
    data = load_dataset(load_config("swiss_roll", settings).data)
    assert data.shape == (2,)
    conditions = data.units.samples.conditions
    assert conditions is not None
    assert conditions.names == ("T", "dose")
    labels = data.labels[torch.tensor([5, 0, 5, 900])]
    drawn = data.units.to_data(data.batch(4, torch.Generator().manual_seed(0), labels))
    given = data.units.condition_to_data(labels).numpy()
    assert abs(drawn[:, 0] - given[:, 1]).max() < 0.06
    assert abs(drawn[:, 1] - 3.0 + given[:, 0] / 100.0).max() < 0.06
    assert np.allclose(data.units.condition_to_model(given), labels, atol=1e-6)
    # Held-out points have theirs behind them, scaled to the points' spread.
    held_out = data.real(100, 0, 0)
    assert held_out.shape == (100, 4)
    assert np.allclose(np.corrcoef(held_out.T)[[0, 1], [3, 2]], [1.0, -1.0], atol=0.01)
    # Columns that are named are those of the points; a frame from Python is the same.
    few = load_config("swiss_roll", [*settings, "data.columns=[x]"]).data
    assert load_dataset(few).shape == (1,)
    assert dataset_of(table[["x", "T", "dose"]], few).shape == (1,)


def test_points_that_share_a_vector_are_drawn_alike():
    frame = pd.DataFrame({"x": np.arange(300.0) % 7, "c": np.repeat([1.0, 2.0, 5.0], 100)})
    config = load_config("swiss_roll", ["data.path=_", "data.condition_columns=[c]"]).data
    data = dataset_of(frame, config)
    labels = data.labels[:1].expand(7000, 1)
    drawn = data.batch(7000, torch.Generator().manual_seed(0), labels)
    own = data.train[(data.labels == data.labels[0]).all(1)]
    shares = [(drawn == value).float().mean() for value in own.unique()]
    wanted = [(own == value).float().mean() for value in own.unique()]
    assert np.allclose(shares, wanted, atol=0.025)  # five standard deviations


@pytest.mark.parametrize("algorithm", ["sft_pg", "ppo", "pathwise", "hybrid", "grpo", "nft"])
def test_vectors_go_through_an_iteration(settings: list[str], algorithm: str):
    """The likelihood ratio is 1 on the first pass only if the learner scores the same vectors."""
    own = {
        "ppo": ["ppo.kl_weight=0.1", "training.micro_batch_size=8"],
        "grpo": ["rollout.group_size=4"],
    }
    given = [f"algorithm={algorithm}", *own.get(algorithm, ())]
    config, data = resolve(load_config("swiss_roll", [*settings, *given]))
    network, _ = full_step_network(config, data)
    assert torch.equal(network.conditions, data.labels[: len(network.conditions)])
    networks = networks_of(config, network)
    learner = learner_of(config, networks, data)
    runner = build_runner(config)
    runner.load(0, to_arrays(networks.policy))
    drawn = [runner.collect(0, shard) for shard in (0, 1)]
    batch = Trajectories.from_numpy(Trajectories.concatenate(drawn).to_numpy())
    assert batch.labels.shape == (2 * config.training.batch_size, 2)
    assert len(batch.labels[: config.rollout.group_size].unique(dim=0)) == 1
    scores, _ = learner.update_critic(batch.final, 0, 0, batch.labels)
    learner.update_value(batch, scores)
    assert learner.update_policy(batch, 0).get("first_ratio_deviation", 0.0) < 1e-4


def by_dose(samples: Tensor, condition: Tensor) -> Tensor:
    """A reward that looks at the condition in its own units."""
    assert condition.shape == (len(samples), 2)
    return -(samples[:, 0] - condition[:, 1]).abs()


by_dose.wants = "data"  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def run(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conditional") / "run"
    longer = ["pretraining.num_iterations=400", "training.num_iterations=4", "model.width=32"]
    assert main(["train", "swiss_roll", *settings, *longer, "--out", str(folder)]) == 0
    return folder


def test_a_run_draws_what_it_is_given_without_its_data(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["data"]["conditional on"] == "T, dose"
    sampler = load_sampler(run)
    cold, hot = (sampler.sample(500, condition=[heat, 1.5]) for heat in (0.0, 300.0))
    assert cold.shape == (500, 2)
    assert np.median(cold[:, 1]) - np.median(hot[:, 1]) > 1.0  # 3 in the data
    each = pd.DataFrame({"dose": [1.5] * 4, "T": [300.0] * 4})
    each.to_csv(tmp_path / "each.csv", index=False)
    words = ["sample", str(run), "--num", "4", "--out"]
    assert main([*words, str(tmp_path / "a.npy"), "--condition", str(tmp_path / "each.csv")]) == 0
    assert main([*words, str(tmp_path / "b.npy"), "--condition", "300,1.5"]) == 0
    assert main([*words, str(tmp_path / "c.npy")]) == 0  # of training samples
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))
    capsys.readouterr()
    for given, told in (
        ("300", "condition: needs 2 numbers (T, dose)"),
        ("nan,1", "condition: holds numbers that are not finite"),
        (str(tmp_path / "none.csv"), "--condition: no file at"),
    ):
        assert main([*words, str(tmp_path / "d.npy"), "--condition", given]) == 2
        assert told in (error := capsys.readouterr().err)
        assert error.count("\n") == 1
    with pytest.raises(UserError, match="2 vectors for 3 samples"):
        sampler.sample(3, condition=[[0.0, 1.0]] * 2)


def test_the_env_has_the_condition(run: Path):
    options: dict[str, Any] = env_arguments(run=run, reward=by_dose)
    scalar, vector = DenoisingEnv(**options), DenoisingVectorEnv(num_envs=3, **options)
    check_env(scalar, skip_render_check=True)
    batch, _ = vector.reset(seed=5)
    assert batch["condition"].shape == (3, 2)
    assert np.array_equal(scalar.reset(seed=6)[0]["condition"], batch["condition"][1])
    wanted = np.array([[0.0, 0.0], [1.0, -1.0], [0.5, 2.0]], np.float32)
    assert np.array_equal(vector.reset(options={"condition": wanted})[0]["condition"], wanted)
    for _ in range(options["num_steps"]):
        _, rewards, *_ = vector.step(np.zeros((3, 2), np.float32))
    units = load_sampler(run).units
    doses = units.condition_to_data(torch.tensor(wanted)).numpy()[:, 1]
    assert np.allclose(rewards, -abs(units.samples.shift[0] - doses), atol=1e-5)
    for bad, told in (([1.0], "has shape"), ([np.inf, 0.0], "not finite")):
        with pytest.raises(UserError, match=told):
            scalar.reset(options={"condition": bad})


class Own(nn.Module):
    """A network that refuses any condition but one of two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Map x (N, 2), t (N,) and conditions (N, 2)."""
        return self.layer(torch.cat([x, t[:, None] / 1000.0, condition], dim=1))


def test_a_network_of_ones_own_gets_the_vectors(settings: list[str]):
    config, data = resolve(load_config("swiss_roll", settings), network=Own())
    network, _ = full_step_network(config, data, own=Own())
    policy = networks_of(config, network).policy
    assert policy.sample(7, torch.Generator().manual_seed(0)).shape == (7, 2)
    one_column = [*settings, "data.condition_columns=[T]", "data.columns=[x,y]"]
    with pytest.raises(UserError, match=r"timesteps \(2,\), condition \(2, 1\)\) failed"):
        resolve(load_config("swiss_roll", one_column), network=Own())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("data.condition_columns=[dos]",), "has no 'dos'; did you mean 'dose'"),
        (("data.condition_columns=[x,y,T,dose]",), "no other columns for the points"),
        (("data.columns=[x,T]",), r"data.condition_columns: \['T'\] are in data.columns, too"),
        (("data.name=digits", "data.path=null"), "goes with a table of points or pictures"),
        (("model.kind=paper_mlp",), "paper_mlp takes no condition"),
        (("critic.objective=mmd",), "'mmd' does not look at the labels or vectors"),
    ],
)
def test_what_cannot_work_is_one_line(settings: list[str], given: tuple[str, ...], words: str):
    with pytest.raises(UserError, match=words) as error:
        resolve(load_config("swiss_roll", [*settings, *given]))
    assert "\n" not in str(error.value)


def test_a_program_draws_from_noise_and_condition(run: Path, tmp_path: Path):
    out = tmp_path / "program"
    assert main(["export", str(run), "--out", str(out)]) == 0
    code = (
        "import sys, torch; sys.modules['sft_rl'] = None\n"
        "sampler = torch.export.load(sys.argv[1]).module()\n"
        "noise, condition = torch.load(sys.argv[2])\n"
        "torch.save(sampler(noise=noise, condition=condition), sys.argv[3])\n"
    )
    sampler = load_sampler(run)
    noise = torch.randn(7, 5, 2, generator=torch.Generator().manual_seed(0))
    condition = torch.tensor([[300.0, 1.5]]).expand(7, 2).contiguous()
    torch.save((noise, condition), tmp_path / "in.pt")
    files = [str(out / "sampler.pt2"), str(tmp_path / "in.pt"), str(tmp_path / "out.pt")]
    subprocess.run([sys.executable, "-c", code, *files], check=True)
    found = torch.load(tmp_path / "out.pt")
    latents, labels = noise[:, 0], sampler.units.condition_to_model(condition)
    for k in range(4):
        index = torch.tensor(k)
        latents = sampler.policy.mean(latents, index, labels)
        latents = latents + sampler.policy.step_std(index) * noise[:, k + 1]
    assert np.allclose(found.detach(), sampler.units.to_data(latents.detach()), atol=1e-5)
    card = (out / "README.md").read_text()
    for told in ("# A 4-step sampler of file", "| base model | mlp, pretrained", "two-sample"):
        assert told in card
