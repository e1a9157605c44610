"""Pictures that are given some columns of numbers of their table, from the file to samples."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from pictures import encoded

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

NUM = 160


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey squares, whose light and how much more of it is above than below stand beside them."""
    source = np.random.default_rng(0)
    light, slope = source.uniform(60, 190, NUM), source.choice([-40.0, 0.0, 40.0], NUM)
    rows = np.linspace(1, -1, 8)[None, :, None]
    pixels = light[:, None, None] + slope[:, None, None] * rows + np.zeros((1, 1, 8))
    columns = {
        "image": [encoded(one.round().astype(np.uint8)) for one in pixels],
        "label": source.integers(0, 3, NUM),
        "light": light,
        "slope": slope,
        "word": ["a"] * NUM,
        "gap": [None, *light[1:]],
    }
    file = tmp_path_factory.mktemp("given") / "pictures.parquet"
    pd.DataFrame(columns).to_parquet(file)
    return file


@pytest.fixture(scope="module")
def settings(table: Path, tiny_digits: tuple[str, ...]) -> list[str]:
    sizes = ["data.image_size=8", "data.channels=1", "metrics.full_step=off"]
    where = [f"data.path={table}", "data.condition_columns=[slope,light]"]
    return [*tiny_digits, *sizes, *where]


def test_each_real_picture_comes_with_its_numbers(settings: list[str]):
    data = load_dataset(load_config("images", settings).data)
    assert data.units.samples.conditions.names == ("slope", "light")
    assert data.units.samples.num_classes == 0
    labels = data.labels[torch.tensor([5, 0, 5, 90])]
    drawn = data.units.to_data(data.batch(4, torch.Generator().manual_seed(0), labels))
    given = data.units.condition_to_data(labels).numpy()
    assert np.allclose(drawn.mean((1, 2, 3)), given[:, 1], atol=1)
    above, below = drawn[:, 0, 0, 0].astype(float), drawn[:, 0, -1, 0].astype(float)
    assert np.allclose((above - below) / 2, given[:, 0], atol=1)
    assert data.real(20, 0, 0).shape == (20, 1, 8, 8)
    assert data.description["conditional on"] == "slope, light"


@pytest.mark.parametrize("algorithm", ["ppo", "pathwise"])
def test_numbers_go_through_an_iteration(settings: list[str], algorithm: str):
    """The likelihood ratio is 1 on the first pass only if the learner scores the same numbers."""
    own = [f"algorithm={algorithm}", "ppo.baseline=value", "training.micro_batch_size=6"]
    config, data = resolve(load_config("images", [*settings, *own]))
    network, _ = full_step_network(config, data)
    networks = networks_of(config, network)
    learner, runner = learner_of(config, networks, data), build_runner(config)
    runner.load(0, to_arrays(networks.policy))
    batch = Trajectories.concatenate([runner.collect(0, shard) for shard in (0, 1)])
    other = batch.labels.roll(1, 0)
    for judge, steps in ((networks.critic, ()), (networks.value, (torch.zeros(()).long(),))):
        with torch.no_grad():
            seen, turned = (judge(batch.final, *steps, y) for y in (batch.labels, other))
        assert not torch.allclose(seen, turned)
    scores, _ = learner.update_critic(batch.final, 0, 0, batch.labels)
    learner.update_value(batch, scores)
    assert learner.update_policy(batch, 0).get("first_ratio_deviation", 0.0) < 1e-4


@pytest.fixture(scope="module")
def run(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given") / "run"
    longer = ["pretraining.num_iterations=150", "pretraining.batch_size=32", "noise.beta_end=0.5"]
    words = ["train", "images", *settings, *longer, "pretraining.learning_rate=5e-3"]
    assert main([*words, "--out", str(folder)]) == 0
    return folder


def test_a_run_draws_what_it_is_given(run: Path, tmp_path: Path):
    sampler = load_sampler(run)
    dark, light = (sampler.sample(200, condition=[0.0, value]) for value in (70.0, 180.0))
    assert light.mean() - dark.mean() > 40  # 110 in the data
    out = tmp_path / "given.png"
    words = ["sample", str(run), "--num", "4", "--condition", "0,100", "--out", str(out)]
    assert main(words) == 0
    with pytest.raises(UserError, match="take no vectors"):
        sampler.to_diffusers()
    summary = json.loads((run / "summary.json").read_text())
    assert "sliced_wasserstein" in summary["final"]


@pytest.mark.slow
def test_its_program_draws_the_same(run: Path, tmp_path: Path):
    sampler, program = load_sampler(run), tmp_path / "program"
    assert main(["export", str(run), "--out", str(program)]) == 0
    module = torch.export.load(program / "sampler.pt2").module()
    noise = torch.randn(5, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    condition = torch.tensor([[40.0, 180.0]]).expand(5, 2).contiguous()
    found = module(noise=noise, condition=condition)
    labels, latents = sampler.units.condition_to_model(condition), noise[:, 0]
    for k in range(3):
        drawn = sampler.policy.act(latents, torch.tensor(k), noise[:, k + 1], labels)
        latents = drawn.action
    wanted = sampler.units.to_data(latents.detach())
    assert abs(found.detach().numpy() - wanted).max() <= 0.501


def test_the_env_has_the_numbers(run: Path):
    options: dict[str, Any] = env_arguments(run=run, reward="critic")
    check_env(DenoisingEnv(**options), skip_render_check=True)
    vector = DenoisingVectorEnv(num_envs=2, **options)
    wanted = np.array([[0.5, -1.0], [1.0, 2.0]], np.float32)
    assert np.array_equal(vector.reset(options={"condition": wanted})[0]["condition"], wanted)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("data.condition_columns=[ligt]",), "has no 'ligt'; did you mean 'light'"),
        (("data.condition_columns=[word]",), "column 'word' holds .*string, no numbers"),
        (("data.condition_columns=[gap]",), "row 0 has None in column 'gap'"),
        (("data.columns=[image,label]",), "stand in the place of labels"),
        (("data.captions=word",), "stand in the place of labels"),
        (("data.name=digits", "data.path=null"), "goes with a table of points or pictures"),
        (("model.unet.num_class_embeds=3",), "take one of the two"),
        (("model.kind=dit",), "model.kind=dit takes no vectors"),
        (("pretrained.path=owner/name",), "a model of pretrained.path takes no vectors"),
        (("metrics.distance=frechet",), "'frechet' needs labelled images"),
    ],
)
def test_what_cannot_work_is_one_line(settings: list[str], given: tuple[str, ...], words: str):
    with pytest.raises(UserError, match=words) as error:
        resolve(load_config("images", [*settings, *given]))
    assert "\n" not in str(error.value)


def test_numbers_stand_in_tables_alone(settings: list[str], tmp_path: Path):
    (tmp_path / "one.png").write_bytes(encoded())
    with pytest.raises(UserError, match=r"data\.condition_columns: .* has no table"):
        resolve(load_config("images", [*settings, f"data.path={tmp_path}"]))
    pixels = np.zeros((9, 1, 8, 8), np.uint8)
    with pytest.raises(UserError, match="images were handed over"):
        dataset_of(pixels, load_config("images", settings).data)
