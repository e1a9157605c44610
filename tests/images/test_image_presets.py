"""The presets of the paper's images: their networks, their data, and a whole tiny run."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

from sft_rl.cli import main
from sft_rl.config.files import load_config
from sft_rl.data import dataset_of
from sft_rl.errors import UserError
from sft_rl.export.few_step_pipeline import FewStepPipeline
from sft_rl.jobs.dry_run import (
    activation_bytes,
    check_memory,
    dry_run,
    kept_bytes,
    memory_of,
    object_bytes,
    requirements_of,
)
from sft_rl.runs.parts import network_of, policy_of
from sft_rl.runs.resolve import resolve

TINY = (
    "training.num_iterations=2",
    "training.batch_size=4",
    "training.n_critic=1",
    "training.n_generator=1",
    "training.eval_every=1",
    "training.checkpoint_every=1",
    "sampler.num_steps=3",
    "metrics.num_samples=10",
    "metrics.num_exact=10",
    "critic.num_warmup_steps=0",
    "critic.width=4",
    "value.width=4",
    "value.widths=[8]",
    "sampler.start_time=30",
)
TINY_GLYPHS = "data.num_points=200"


def needs(preset: str, *settings: str) -> dict[str, str]:
    """What a dry run says, of images that are there."""
    config = load_config(preset, settings)
    images = np.random.default_rng(0).integers(0, 255, (160, *config.data.image_shape), np.uint8)
    return dry_run(config, data=dataset_of(images, config.data))


@pytest.mark.parametrize(
    ("preset", "parameters"), [("cifar10_paper", 35_746_307), ("celeba64_paper", 78_700_803)]
)
def test_the_papers_networks_have_the_published_sizes(preset: str, parameters: int):
    assert needs(preset)["parameters, policy"] == f"{parameters:,}"


def test_an_iteration_of_cifar_size_fits_in_12_gib():
    for preset in ("cifar10", "cifar10_paper"):
        needed = needs(preset)["memory, all"]
        assert float(needed.removesuffix(" GiB")) < 12


def test_micro_batches_make_a_policy_gradient_of_cifar_size_fit_in_12_gib():
    settings = ["algorithm=sft_pg", "training.batch_size=128", "training.micro_batch_size=128"]
    needed = needs("cifar10", *settings)  # T = 10
    assert needed["network calls kept for a policy step"] == "1 of 128 latents"
    assert float(needed["memory, all"].removesuffix(" GiB")) < 12


def test_activations_are_counted_in_the_bytes_that_autograd_keeps(tiny_unet: dict[str, object]):
    settings = ["model.kind=unet", "sampler.num_steps=2"]
    config, _ = resolve(load_config("digits", [*settings, f"model.unet={json.dumps(tiny_unet)}"]))
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    network = network_of(config)
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network(torch.zeros(6, 1, 8, 8), torch.zeros(6))
    assert output.requires_grad
    with torch.device("meta"):
        policy = policy_of(config, network_of(config))
    counted = activation_bytes(policy, 6)
    assert counted == pytest.approx(sum(kept.values()), rel=0.1)


def test_a_dry_run_says_what_is_needed_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", "cifar10")
    own = ("data.path=images", "training.batch_size=32")
    assert main(["train", "cifar10", *own, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for words in ("3x32x32", "35,746,3", "2 x 32", "memory, all", "memory, there"):
        assert words in shown
    assert [p.name for p in tmp_path.iterdir()] == ["images"]


def test_what_does_not_fit_into_memory_is_refused_with_what_does():
    config, _ = resolve(load_config("digits", ["training.batch_size=512"]))
    needs = partial(requirements_of, config)
    needed = needs(None).num_bytes
    check_memory(config, available=needed)
    words = r"needs 1\.02 GiB of memory, there are 0\.8\d GiB; training\.micro_batch_size=64 does"
    with pytest.raises(UserError, match=words):
        check_memory(config, available=needs(64).num_bytes)
    with pytest.raises(UserError, match=r"a batch of one needs 0\.6\d GiB: take a smaller network"):
        check_memory(config, available=2**29)
    here = memory_of(torch.device("cpu"))
    assert needed < here < 2**44


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_dry_run_counts_what_is_kept(precision: str):
    """Without data as with data, in half the bytes where autocast halves them."""
    own = [f"model.precision={precision}", TINY_GLYPHS, "reward=critic"]
    config, _ = resolve(load_config("glyphs16", own))
    with torch.device("meta"):
        shapes = policy_of(config, network_of(config))
    policy = policy_of(config, network_of(config))
    latents, labels = torch.zeros(3, *policy.shape), policy.blank_labels(3)

    def call(num: int) -> None:
        policy.network(latents[:num], torch.zeros(num), labels[:num])

    assert activation_bytes(shapes, 3) == pytest.approx(kept_bytes(call, policy, 3), rel=0.02)
    if precision == "bfloat16":
        narrow = activation_bytes(shapes, 100)
        shapes.network.in_bfloat16 = False
        assert narrow < 0.6 * activation_bytes(shapes, 100)


def test_rays_objects_are_weights_and_trajectories():
    settings = ["rollout.latent_dtype=float16", "sft_pg.baseline=value", "sampler.num_steps=4"]
    config, _ = resolve(load_config("digits", [*settings, "training.max_offpolicy_steps=1"]))
    weights = sum(p.numel() for p in network_of(config).parameters()) * 4
    a_chain = 5 * 64 * 2 + 4 * 4
    drawn = config.training.batch_size * config.training.n_critic * a_chain
    assert object_bytes(config) == 4 * weights + 4 * drawn


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path, capsys: Any):
    write_images(tmp_path / "images", "cifar10")
    own = [f"data.path={tmp_path / 'images'}", "pretrained.path=null", "training.batch_size=61"]
    assert main(["train", "cifar10", *own, "--out", str(tmp_path / "run")]) == 2
    assert "training.batch_size: 61, but there are 60 training images" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "levels"), [(10, 2), (28, 3), (64, 4)])
def test_pictures_of_ones_own_get_a_unet_by_their_size(tmp_path: Path, size: int, levels: int):
    folder = tmp_path / "pictures"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (24, size, size, 3), np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{number}.png")
    settings = [f"data.path={folder}", f"data.image_size={size}", "training.batch_size=16"]
    config = load_config("images", settings)
    needed = dry_run(config)
    assert needed["U-Net"].count(",") == levels - 1
    assert needed["U-Net"].endswith(f"at {size} to {size // 2 ** (levels - 1)} pixels")


def write_model(folder: Path, size: int, unet: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = UNet2DModel(sample_size=size, in_channels=3, out_channels=3, **unet)
    DDPMPipeline(model, DDPMScheduler(num_train_timesteps=60)).save_pretrained(folder)


def write_images(folder: Path, preset: str) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    if preset.startswith("cifar10"):
        for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
            table = rng.integers(0, 256, (12, 3073), dtype=np.uint8)
            table[:, 0] %= 10
            table.tofile(folder / name)
    else:
        for i in range(20):
            pixels = rng.integers(0, 256, (218, 178, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.jpg")


@pytest.mark.parametrize(
    ("preset", "size"),
    [
        ("cifar10", 32),
        pytest.param("cifar10_paper", 32, marks=pytest.mark.slow),
        ("celeba64", 64),
    ],
)
def test_from_a_model_and_images_to_a_pipeline(
    preset: str, size: int, tmp_path: Path, tiny_unet: dict[str, object]
):
    write_model(tmp_path / "model", size, tiny_unet)
    write_images(tmp_path / "images", preset)
    settings = [
        f"pretrained.path={tmp_path / 'model'}",
        f"data.path={tmp_path / 'images'}",
        # pixels in place of features: a classifier of noise says nothing
        "metrics.distance=sliced_wasserstein",
        "metrics.full_step=5",
        f"training.plots={str(preset == 'cifar10').lower()}",
    ]
    run, out = str(tmp_path / "run"), str(tmp_path / "pipeline")
    assert main(["train", preset, *TINY, *settings, "--out", run]) == 0
    assert main(["export", run, "--out", out, "--no-code"]) == 0
    images = FewStepPipeline.from_pretrained(out)(2, output_type="np").images
    assert images.shape == (2, size, size, 3)
    assert np.isfinite(images).all()
