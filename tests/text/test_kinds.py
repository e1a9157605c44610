"""Other text-to-image pipelines: what they draw, ours draw; fine-tuned to few steps of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from peft import PeftModel
from tiny_pipelines import PROMPTS, write_pixart, write_sdxl, write_sigma

from sft_rl.cli import main
from sft_rl.config.files import load_config
from sft_rl.diffusion.noise import path_of
from sft_rl.diffusion.prediction import Prediction
from sft_rl.diffusion.schedule import own_steps
from sft_rl.errors import UserError
from sft_rl.export.few_step import FewStepScheduler
from sft_rl.networks.guided import Guided
from sft_rl.policy import DenoisingPolicy
from sft_rl.pretrained.pipelines import embeddings_of
from sft_rl.runs.parts import full_step_network
from sft_rl.runs.remote import open_run
from sft_rl.runs.resolve import resolve

TWO = [PROMPTS[0], PROMPTS[2]]
OF_DDPM = ("vp", 1.0, "fixed_small", "epsilon")
SIZE = {"height": 16, "width": 16}
OF_PIXART = {**SIZE, "use_resolution_binning": False}
CALLS = {"sd3": SIZE, "sdxl": SIZE, "pixart": OF_PIXART, "sigma": OF_PIXART}
WRITERS = {"sdxl": write_sdxl, "pixart": write_pixart, "sigma": write_sigma}


@pytest.fixture
def folder(kind: str, sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if kind == "sd3":
        return sd3_folder
    folder = tmp_path_factory.mktemp("pipeline") / kind
    WRITERS[kind](folder)
    return folder


@pytest.fixture
def own(settings: list[str], folder: Path) -> list[str]:
    """Settings of a run, from pure noise, which is where flow matching starts."""
    few = ["data.num_points=20"]
    return [*settings, *few, f"pretrained.path={folder}", "sampler.start_time=19"]


def drawn(pipeline: DiffusionPipeline, output_type: str, **options: object) -> torch.Tensor:
    """By torch's own generator: not all pipelines give their scheduler another."""
    pipeline.set_progress_bar_config(disable=True)
    torch.manual_seed(3)
    options |= {"generator": torch.default_generator, "output_type": output_type}
    return pipeline(TWO, **options).images


def ours(policy: DenoisingPolicy) -> torch.Tensor:
    torch.manual_seed(3)
    return policy.sample(2, torch.default_generator, torch.tensor([0, 2]))


@pytest.mark.parametrize("kind", ["sd3", "sdxl", "pixart"])
def test_what_the_pipeline_draws_ours_draws(kind: str, folder: Path, own: list[str]):
    """All of its scheduler's own steps on the same noise: latents, and guided pictures."""
    config, data = resolve(load_config("images", own))
    noise, prediction = config.noise, Prediction.from_config(config.model)
    found = noise.path, noise.shift, noise.variance, prediction.kind
    assert found == (("flow", 3.0, "none", "flow") if kind == "sd3" else OF_DDPM)
    network, _ = full_step_network(config, data)
    steps = own_steps(path_of(noise), prediction, variance=noise.variance)
    theirs, seen = DiffusionPipeline.from_pretrained(folder), []
    for scale in (1.0, 3.0):
        guided = Guided(network, scale=scale, null_label=3) if scale != 1.0 else network
        policy = DenoisingPolicy(guided, steps, shape=(4, 8, 8), num_classes=3)
        seen.append(ours(policy))
        found, output = seen[-1], "latent"
        if scale != 1.0:
            found, output = (data.units.in_units(found) / 255).clamp(0, 1), "pt"
        options = {"num_inference_steps": 20, "guidance_scale": scale, **CALLS[kind]}
        torch.testing.assert_close(found, drawn(theirs, output, **options), rtol=0, atol=1e-4)
    assert (seen[0] - seen[1]).abs().max() > 0.01
    labels = torch.tensor([1, 1])
    torch.manual_seed(3)
    other = policy.sample(2, torch.default_generator, labels)
    assert (seen[1] - other).abs().flatten(1).max(dim=1).values.min() > 0.01


@pytest.mark.parametrize(
    "kind", ["sd3", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("sdxl", "sigma"))]
)
def test_few_steps_of_it(kind: str, folder: Path, own: list[str], tmp_path: Path):
    """Fine-tuned by an adapter; exported, the pipeline and the adapter draw what the run draws."""
    run, whole, adapter = tmp_path / "run", tmp_path / "whole", tmp_path / "adapter"
    own = [*own, "algorithm=pathwise", "metrics.full_step=off", "policy.learning_rate=0.05"]
    assert main(["train", "images", *own, "--out", str(run)]) == 0
    policy, _ = open_run(run).result()
    expected = ours(policy)
    assert main(["export", str(run), "--out", str(whole)]) == 0
    theirs = DiffusionPipeline.from_pretrained(whole, trust_remote_code=True)
    options = {"guidance_scale": 1, **CALLS[kind]}
    torch.testing.assert_close(drawn(theirs, "latent", **options), expected, rtol=0, atol=1e-4)
    assert main(["export", str(run), "--out", str(adapter), "--adapter", "--no-code"]) == 0
    theirs = DiffusionPipeline.from_pretrained(folder)
    theirs.scheduler = FewStepScheduler.from_pretrained(adapter / "scheduler")
    before = drawn(theirs, "latent", **options)
    if kind != "sigma":
        theirs.load_lora_weights(adapter)
        assert ("attn.add_q_proj" in " ".join(policy.state_dict())) == (kind == "sd3")
    else:
        theirs.transformer = PeftModel.from_pretrained(theirs.transformer, adapter)
    after = drawn(theirs, "latent", **options)
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-4)
    assert (after - before).abs().max() > 0.01


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize("kind", ["sd3"])
def test_parts_that_may_be_missing_and_what_is_refused(
    folder: Path, own: list[str], tmp_path: Path
):
    """Without T5, whose tokens are zeros then."""
    copy = shutil.copytree(folder, tmp_path / "copy")

    def refused(words: str, *settings: str) -> None:
        with pytest.raises(UserError) as error:
            resolve(load_config("images", [*own, f"pretrained.path={copy}", *settings]))
        assert words in str(error.value), error.value
        assert "\n" not in str(error.value)

    refused("sampler.start_time: a pipeline of flow matching", "sampler.start_time=15")
    refused("takes multiples of 2 up to 16", "data.image_size=36")
    refused("takes multiples of 2 up to 16", "data.image_size=14")
    for file, values, words in (
        (
            "transformer/config.json",
            {"pooled_projection_dim": 5},
            "takes 5 numbers of a prompt as pooled",
        ),
        ("transformer/config.json", {"in_channels": 9}, "inpainting"),
        ("vae/config.json", {"latents_mean": [0.0] * 4}, "has latents_mean"),
        ("model_index.json", {"text_encoder_2": [None, None]}, "has no text_encoder_2"),
        ("scheduler/scheduler_config.json", {"use_dynamic_shifting": True}, "use_dynamic_shift"),
    ):
        before = (copy / file).read_text()
        change(copy / file, **values)
        refused(words)
        (copy / file).write_text(before)
    change(copy / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(copy / part)
    cpu = torch.device("cpu")
    found, complete = (embeddings_of(f, PROMPTS, cpu) for f in (copy, folder))
    without = {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(copy, **without)
    theirs = pipeline.encode_prompt(list(PROMPTS), None, None)
    np.testing.assert_allclose(found["prompts"][:3], theirs[0].detach(), rtol=0, atol=1e-6)
    assert torch.equal(found["pooled"], complete["pooled"])
    assert found["prompts"].shape == complete["prompts"].shape == (4, 264, 32)
    assert not torch.equal(found["prompts"], complete["prompts"])
