"""A class-conditional transformer of latents: what diffusers draws, ours draws; few steps of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiTPipeline, DiTTransformer2DModel
from PIL import Image
from tiny_pipelines import tiny_autoencoder

from sft_rl.cli import main
from sft_rl.config.files import load_config
from sft_rl.diffusion.noise import path_of
from sft_rl.diffusion.prediction import Prediction
from sft_rl.diffusion.schedule import own_steps
from sft_rl.errors import UserError
from sft_rl.export.few_step import FewStepScheduler
from sft_rl.policy import DenoisingPolicy
from sft_rl.runs.parts import full_step_network
from sft_rl.runs.remote import open_run
from sft_rl.runs.resolve import resolve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,  # the second half is a variance
        num_layers=1,
        sample_size=8,
        num_embeds_ada_norm=2,
        norm_num_groups=4,
    )
    scheduler = DDPMScheduler(20, beta_end=0.3, clip_sample=False)
    parts = {"transformer": transformer, "vae": tiny_autoencoder(), "scheduler": scheduler}
    DiTPipeline(**parts).save_pretrained(tmp_path / "dit")
    return tmp_path / "dit"


def drawn(pipeline: DiTPipeline, **options: object) -> np.ndarray:
    """Pictures by torch's own generator, which the pipeline takes for its steps."""
    pipeline.set_progress_bar_config(disable=True)
    torch.manual_seed(3)
    options |= {"guidance_scale": 1.0, "generator": torch.default_generator, "output_type": "np"}
    return pipeline([1, 0], **options).images.transpose(0, 3, 1, 2)


def test_what_the_pipeline_draws_ours_draws(folder: Path, tmp_path: Path):
    for label in range(2):
        (tmp_path / "pictures" / f"{label}").mkdir(parents=True)
        for number in range(10):
            picture = Image.new("RGB", (16, 16), (90 * label, 9 * number, 50))
            picture.save(tmp_path / "pictures" / f"{label}" / f"{number}.png")
    settings = [
        f"pretrained.path={folder}",
        f"data.path={tmp_path / 'pictures'}",
        "data.image_size=16",
        "sampler.num_steps=3",
        "sampler.start_time=15",
        "critic.width=8",
        "critic.num_warmup_steps=1",
        "algorithm=pathwise",
        "training.num_iterations=1",
        "training.batch_size=4",
        "training.n_critic=1",
        "training.plots=false",
        "metrics.num_samples=10",
        "metrics.full_step=off",
        "rollout.num_workers=0",
        "policy.lora.rank=2",
    ]
    config, data = resolve(load_config("images", settings))
    steps = own_steps(path_of(config.noise), Prediction.from_config(config.model))
    network, _ = full_step_network(config, data)
    policy = DenoisingPolicy(network, steps, shape=(4, 8, 8), num_classes=2)
    torch.manual_seed(3)
    ours = policy.sample(2, torch.default_generator, torch.tensor([1, 0]))
    theirs = drawn(DiTPipeline.from_pretrained(folder), num_inference_steps=20)
    pixels = (data.units.in_units(ours) / 255).clamp(0, 1)
    np.testing.assert_allclose(pixels, theirs, rtol=0, atol=1e-4)
    run, out = tmp_path / "run", tmp_path / "out"
    assert main(["train", "images", *settings, "--out", str(run)]) == 0
    assert main(["export", str(run), "--out", str(out)]) == 0
    policy, _ = open_run(run).result()
    torch.manual_seed(3)
    ours = policy.sample(2, torch.default_generator, torch.tensor([1, 0]))
    theirs = DiTPipeline.from_pretrained(out, trust_remote_code=True)
    assert type(theirs.scheduler).__name__ == FewStepScheduler.__name__
    pixels = (data.units.in_units(ours) / 255).clamp(0, 1)
    np.testing.assert_allclose(pixels, drawn(theirs), rtol=0, atol=1e-4)
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "vae": [None, None]}))
    with pytest.raises(UserError, match="has no vae"):
        resolve(load_config("images", settings))
