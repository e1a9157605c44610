"""Class-conditional models: labels from the env to networks, samples, files and pipelines."""

import json
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from gymnasium.utils.env_checker import check_env

from envs import DenoisingEnv, DenoisingVectorEnv
from sft_rl.cli import main
from sft_rl.config import CriticConfig
from sft_rl.config.files import load_config
from sft_rl.data.images import load_images
from sft_rl.errors import UserError
from sft_rl.export.few_step_pipeline import FewStepPipeline
from sft_rl.jobs.build import build_runner
from sft_rl.learning.monitors import critic_slope, drift
from sft_rl.networks import critic_network
from sft_rl.policy import to_arrays
from sft_rl.pretrained.training import pretrain
from sft_rl.runs.folder import RunFolder
from sft_rl.runs.parts import learner_of, network_of, networks_of
from sft_rl.runs.resolve import resolve
from sft_rl.types import Trajectories

DIGITS = (1, 8, 8)
ENV = "envs:sft_rl/Denoising-v0"


@pytest.fixture(scope="session")
def by_class(tiny_digits: tuple[str, ...]) -> list[str]:
    """Settings of a tiny class-conditional run."""
    classes = "model.unet.num_class_embeds=10"
    return [*tiny_digits, classes, "metrics.distance=sliced_wasserstein"]


@pytest.fixture(scope="session")
def write_model(tiny_unet: dict[str, object]) -> Any:
    def write(folder: Path, **options: object) -> UNet2DModel:
        torch.manual_seed(0)
        model = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **tiny_unet, **options)
        DDPMPipeline(model, DDPMScheduler(num_train_timesteps=20)).save_pretrained(folder)
        return model

    return write


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, by_class: list[str]) -> Path:
    out = tmp_path_factory.mktemp("by_class") / "run"
    assert main(["train", "digits", *by_class, "--out", str(out)]) == 0
    return out


def test_row_i_has_the_label_of_the_scalar_env_and_labels_are_uniform():
    options: dict[str, Any] = {"num_steps": 1, "shape": (2,), "num_classes": 10}
    options["reward"] = lambda samples, labels: labels.float()
    vector = DenoisingVectorEnv(num_envs=2000, **options)
    scalar = DenoisingEnv(**options)
    check_env(scalar, skip_render_check=True)
    batch, _ = vector.reset(seed=7)
    counts = np.bincount(batch["label"], minlength=10)
    assert counts.shape == (10,)
    assert (abs(counts - 200) < 70).all()  # five standard deviations
    one, _ = scalar.reset(seed=7 + 123)
    assert one["label"] == batch["label"][123]
    second, rewards, *_ = vector.step(np.zeros((2000, 2), np.float32))
    assert np.array_equal(rewards, batch["label"])
    scalar.step(np.zeros(2, np.float32))
    assert scalar.reset()[0]["label"] == second["label"][123]
    assert not np.array_equal(batch["label"], second["label"])
    with pytest.raises(UserError, match="observation: 'flat' has no place for the label"):
        DenoisingEnv(**options, observation="flat")


def test_a_critic_knows_samples_by_their_label():
    for kind in ({"kind": "conv"}, {"kind": "conv", "regulariser": "spectral_norm"}):
        critic = critic_network(CriticConfig(**kind, width=8), DIGITS, num_classes=3)
        x = torch.randn(1, *DIGITS).expand(3, *DIGITS)
        assert len(critic(x, torch.arange(3)).unique()) == 3


@pytest.mark.parametrize("algorithm", ["sft_pg", "ppo", "pathwise", "hybrid"])
def test_labels_go_through_an_iteration(by_class: list[str], algorithm: str):
    """The likelihood ratio is 1 on the first pass only if the learner scores the same labels."""
    settings = [f"algorithm={algorithm}", "ppo.kl_weight=0.1", "value.kind=step_scaled"]
    config, data = resolve(load_config("digits", [*by_class, *settings]))
    torch.manual_seed(0)
    networks = networks_of(config, network_of(config))
    learner = learner_of(config, networks, data)
    runner = build_runner(config)
    runner.load(0, to_arrays(networks.policy))
    drawn = [runner.collect(0, shard) for shard in (0, 1)]
    again = build_runner(config)
    again.load(0, to_arrays(networks.policy))
    assert torch.equal(again.collect(0, 1).labels, drawn[1].labels)
    batch = Trajectories.from_numpy(Trajectories.concatenate(drawn).to_numpy())
    assert batch.labels.shape == (2 * config.training.batch_size,)
    scores, _ = learner.update_critic(batch.final, 0, 0, batch.labels)
    learner.update_value(batch, scores)
    metrics = learner.update_policy(batch, 0)
    assert metrics.get("first_ratio_deviation", 0.0) < 1e-4
    assert drift(batch, networks)["kl_to_pretrained"] > 0
    assert critic_slope(batch, networks)["critic_slope"] > 0


def test_real_images_come_by_label():
    data = load_images(load_config("digits", ["data.flip=true"]).data)
    labels = torch.tensor([7, 0, 7, 9, 3])
    images = data.batch(5, torch.Generator().manual_seed(0), labels)
    known = torch.cat([train := data.units.to_model(data.train), train.flip(-1)])
    row = (images[:, None] == known[None]).flatten(2).all(2).int().argmax(1)
    assert torch.equal(data.labels.repeat(2)[row], labels)


def test_pretraining_learns_from_labels(by_class: list[str]):
    config = load_config("digits", [*by_class, "pretraining.num_iterations=3"])
    network = pretrain(
        config.model,
        config.noise,
        config.pretraining,
        load_images(config.data),
        device=torch.device("cpu"),
        progress=lambda done, total, metrics: None,
    )
    start = network.unet.class_embedding.weight
    assert (start.abs().sum(1) > 0).all()
    x, t = torch.randn(1, *DIGITS).expand(2, *DIGITS), torch.tensor(3.0)
    assert not torch.equal(*network(x, t, torch.tensor([0, 1])).unbind())


def test_samples_of_a_class_and_of_any(run: Path, tmp_path: Path, capsys: Any):
    def drawn(name: str, *label: str) -> np.ndarray:
        out = str(tmp_path / name)
        assert main(["sample", str(run), "--num", "9", "--out", out, *label]) == 0
        return np.load(out)

    three = drawn("a.npy", "--label", "3")
    assert np.array_equal(three, drawn("b.npy", "--label", "3"))
    assert not np.array_equal(three, drawn("c.npy", "--label", "4"))
    drawn("d.npy")
    capsys.readouterr()
    out = str(tmp_path / "e.npy")
    assert main(["sample", str(run), "--num", "1", "--out", out, "--label", "10"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sft-rl: label: got 10") and line.endswith("has classes 0 to 9")


def pipeline_images(pipeline: DiffusionPipeline, labels: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    source = torch.Generator().manual_seed(5)
    return pipeline(6, source, class_labels=labels, output_type="pt").images.numpy()


def test_the_pipeline_is_the_runs_own_sampler_bit_for_bit(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    policy, _ = RunFolder.open(run).result()

    def drawn(labels: torch.Tensor | None) -> np.ndarray:
        samples = policy.eval().sample(6, torch.Generator().manual_seed(5), labels)
        return (samples / 2 + 0.5).clamp(0, 1).numpy()

    labels = torch.tensor([3, 1, 4, 1, 5, 9])
    assert main(["export", str(run), "--out", str(tmp_path / "a"), "--no-code"]) == 0
    pipeline = FewStepPipeline.from_pretrained(tmp_path / "a")
    assert np.array_equal(pipeline_images(pipeline, labels), drawn(labels))
    assert np.array_equal(pipeline_images(pipeline, labels.tolist()), drawn(labels))
    assert np.array_equal(pipeline_images(pipeline, None), drawn(None))
    assert len(pipeline(batch_size=2, class_labels=7).images) == 2
    with pytest.raises(ValueError, match="expected 2 of 0 to 9"):
        pipeline(batch_size=2, class_labels=[0, 10])

    assert main(["export", str(run), "--out", str(tmp_path / "b")]) == 0
    monkeypatch.setitem(sys.modules, "sft_rl", None)  # importing it fails
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "b", trust_remote_code=True)
    assert not isinstance(pipeline, FewStepPipeline)
    assert np.array_equal(pipeline_images(pipeline, labels), drawn(labels))


def test_a_conditional_model_of_diffusers_gives_its_outputs(tmp_path: Path, write_model: Any):
    labels = torch.tensor([2, 9])
    x, t = torch.randn(2, *DIGITS), torch.tensor(7.0)
    for kind in (None, "timestep"):
        model = write_model(tmp_path / str(kind), num_class_embeds=10, class_embed_type=kind)
        settings = [f"pretrained.path={tmp_path / str(kind)}", "sampler.start_time=10"]
        config, _ = resolve(load_config("digits", settings))
        assert config.model.num_classes == 10
        network = network_of(config)
        network.unet.load_state_dict(model.state_dict())
        torch.testing.assert_close(network(x, t, labels), model(x, t, class_labels=labels).sample)


@pytest.mark.parametrize(
    ("data", "classes", "words"),
    [
        ("digits", 7, "is conditional on 7 classes, but the training images have labels of 10"),
        ("digits", "ten", "num_class_embeds must be a number of classes, got 'ten'"),
        ("images", 10, "is conditional on 10 classes, but the data have no labels"),
    ],
)
def test_labels_that_do_not_fit_are_one_line(
    tiny_unet: dict[str, object], data: str, classes: object, words: str
):
    unet = json.dumps({**tiny_unet, "num_class_embeds": classes})
    config = load_config("digits", [f"model.unet={unet}", "metrics.distance=sliced_wasserstein"])
    dataset = load_images(config.data)
    if data == "images":
        object.__setattr__(dataset, "labels", None)
    with pytest.raises(UserError) as error:
        resolve(config, data=dataset)
    assert str(error.value).startswith("model.unet") and words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_critic_without_labels_is_refused(by_class: list[str]):
    config = load_config("digits", [*by_class, "critic.objective=mmd"])
    with pytest.raises(UserError, match=r"critic\.objective: 'mmd' does not look at the labels"):
        resolve(config)


def test_the_env_takes_a_pretrained_path(tmp_path: Path, write_model: Any, by_class: list[str]):
    model = write_model(tmp_path / "model", num_class_embeds=10)
    settings = [s for s in by_class if not s.startswith("model.")]
    settings.append(f"pretrained.path={tmp_path / 'model'}")
    env = gymnasium.make_vec(
        ENV, num_envs=4, preset="digits", settings=settings, action="noise", reward="adversarial"
    ).unwrapped
    assert env.single_observation_space["label"].n == 10
    unet = env.process.policy.network.unet
    for name, tensor in model.state_dict().items():
        assert torch.equal(unet.state_dict()[name], tensor)
    env.reset(seed=0)
    for _ in range(env.process.num_steps):
        _, rewards, *_ = env.step(np.zeros((4, *DIGITS), np.float32))
    assert np.isfinite(rewards).all()
    with pytest.raises(UserError, match=r"pretrained\.path: .* is conditional on 3 classes"):
        write_model(tmp_path / "three", num_class_embeds=3)
        settings[-1] = f"pretrained.path={tmp_path / 'three'}"
        gymnasium.make(ENV, preset="digits", settings=settings)
