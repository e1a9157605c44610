"""Text-to-image pipelines: what diffusers draws, ours draws; fine-tuned on prompts and captions."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from tiny_pipelines import PROMPTS, write_clip

import sft_rl
from sft_rl.cli import main
from sft_rl.config.files import load_config
from sft_rl.data.latents import LatentDataset
from sft_rl.diffusion.noise import path_of
from sft_rl.diffusion.prediction import Prediction
from sft_rl.diffusion.schedule import own_steps
from sft_rl.errors import UserError
from sft_rl.export.few_step import FewStepScheduler
from sft_rl.jobs.dry_run import activation_bytes
from sft_rl.metrics import classifier
from sft_rl.networks.guided import Guided
from sft_rl.policy import DenoisingPolicy
from sft_rl.runs.parts import full_step_network, network_of, policy_of
from sft_rl.runs.remote import open_run
from sft_rl.runs.resolve import resolve
from sft_rl.storage.checkpoint import load, parameters_sha256

ONE = torch.tensor([1, 1])


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_what_the_pipeline_draws_ours_draws(pipeline_folder, settings, scale):
    """All of the pipeline's own steps on the same noise: latents and pictures."""
    config, data = resolve(load_config("images", settings))
    assert isinstance(data, LatentDataset)
    network, _ = full_step_network(config, data)
    if scale != 1.0:
        network = Guided(network, scale=scale, null_label=len(PROMPTS))
    steps = own_steps(path_of(config.noise), Prediction.from_config(config.model))
    policy = DenoisingPolicy(network, steps, shape=(4, 8, 8), num_classes=3)
    ours = policy.sample(2, torch.Generator().manual_seed(3), torch.tensor([0, 2]))
    theirs = StableDiffusionPipeline.from_pretrained(pipeline_folder)
    theirs.set_progress_bar_config(disable=True)

    def drawn(output_type: str) -> torch.Tensor:
        return theirs(
            [PROMPTS[0], PROMPTS[2]],
            num_inference_steps=20,
            guidance_scale=scale,
            generator=torch.Generator().manual_seed(3),
            output_type=output_type,
        ).images

    assert ours.std() > 0.1
    assert not torch.allclose(ours, policy.sample(2, torch.Generator().manual_seed(3), ONE))
    torch.testing.assert_close(ours, drawn("latent"), rtol=0, atol=1e-4)
    pixels = data.units.in_units(ours) / 255
    torch.testing.assert_close(pixels.clamp(0, 1), drawn("pt"), rtol=0, atol=1e-4)


def reddest(
    pictures: list[Image.Image], prompts: list[str], metadata: list[dict[str, int]]
) -> list[float]:
    """A reward of pictures, their prompts and what a table says of these."""
    assert [{"number": PROMPTS.index(prompt)} for prompt in prompts] == metadata
    assert {picture.size for picture in pictures} == {(16, 16)}
    return [
        float(np.asarray(picture)[..., 0].mean()) * (1 + ("two" in prompt))
        for picture, prompt in zip(pictures, prompts, strict=True)
    ]


reddest.wants = "pil"  # type: ignore[attr-defined]


WITHOUT_US = """
import sys, numpy as np, torch
sys.modules["sft_rl"] = None  # importing it fails
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
draw = dict(guidance_scale=1, generator=torch.Generator().manual_seed(5), output_type="latent")
np.save(sys.argv[2], pipeline(["a thick two", "seven"], **draw).images.numpy())
"""


def exported(run: Path, tmp_path: Path) -> None:
    """The pipeline in a fresh process, and the adapter on the base, draw what the run draws."""
    policy, _ = open_run(run).result()
    ours = policy.sample(2, torch.Generator().manual_seed(5), torch.tensor([1, 2])).numpy()
    whole, adapter, file = tmp_path / "whole", tmp_path / "adapter", tmp_path / "latents.npy"
    assert main(["export", str(run), "--out", str(whole)]) == 0
    command = [sys.executable, "-c", WITHOUT_US, str(whole), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(file), ours, rtol=0, atol=1e-4)
    assert main(["export", str(run), "--out", str(adapter), "--adapter", "--no-code"]) == 0
    base = Path(open_run(run).config.pretrained.path)
    theirs = StableDiffusionPipeline.from_pretrained(base)
    theirs.load_lora_weights(adapter)
    theirs.scheduler = FewStepScheduler.from_pretrained(adapter / "scheduler")
    source = torch.Generator().manual_seed(5)
    drawn = theirs(
        list(PROMPTS[1:]), guidance_scale=1, generator=source, output_type="latent"
    ).images
    np.testing.assert_allclose(drawn, ours, rtol=0, atol=1e-4)
    card = (whole / "README.md").read_text()
    for words in ("tags: [text-to-image", "3 of ", PROMPTS[0], "1 x test_pipelines:reddest"):
        assert words in card
    for part in ("text_encoder", "tokenizer", "vae"):
        for own in (base / part).iterdir():
            assert (whole / part / own.name).read_bytes() == own.read_bytes()


def test_from_prompts_and_a_reward(settings, tmp_path, capsys):
    run = tmp_path / "run"
    own = [
        "reward.terms=[{use: 'test_pipelines:reddest'}]",
        "algorithm=grpo",
        "reward.num_scored=6",
    ]
    table = tmp_path / "prompts.csv"
    table.write_text("".join(["text,number\n", *(f"{p},{i}\n" for i, p in enumerate(PROMPTS))]))
    groups = ["rollout.group_size=3", "reward.terms.0.batch_size=3"]
    with pytest.raises(UserError, match="'reddest' needs the metadata of prompts"):
        resolve(load_config("images", [*settings, *own, groups[0]]))
    own += [f"prompts.path={table}", "prompts.metadata=[number]", "training.plots=true"]
    own += [f"metrics.clip_path={tmp_path / 'clip'}"]
    write_clip(tmp_path / "clip")
    assert main(["train", "images", *settings, *own, groups[0], "--out", str(run)]) == 0
    store = open_run(run)
    assert store.config.samples.prompts.texts == PROMPTS
    by_prompt = pd.read_csv(run / "prompts.csv")
    assert by_prompt["prompt"].tolist() == list(PROMPTS)
    columns = [f"{name}_final" for name in ("term_reddest", "diversity", "clip_score")]
    assert (by_prompt[columns] > 0).all(axis=None)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["final"]["clip_score"] == pytest.approx(by_prompt[columns[-1]].mean())
    assert "classes" not in summary
    assert (run / "plots" / "prompts.png").is_file()
    kept = load(run / "checkpoints" / "000002").tensors
    assert sum(t.numel() for t in kept["average"].values()) < 10_000
    sampler = sft_rl.load_sampler(run)
    drawn = sampler.sample(2, label=PROMPTS[1])
    assert (drawn.shape, drawn.dtype) == ((2, 3, 16, 16), np.uint8)
    assert np.array_equal(drawn, sampler.sample(2, label=1))
    with pytest.raises(UserError, match="'a cat' is none of the run's 3 prompts"):
        sampler.sample(2, label="a cat")
    assert main(["evaluate", str(run)]) == 0
    assert (
        main(["sample", str(run), "--num", "2", "--label", PROMPTS[2], "--out", f"{run}.png"]) == 0
    )
    exported(run, tmp_path)


def captioned(folder: Path, captions: list[str]) -> None:
    """Pictures of random grey, each with a file beside it."""
    folder.mkdir()
    for number, caption in enumerate(captions):
        Image.new("RGB", (16, 16), (10 * number,) * 3).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption + "\n")


def has_whole_weights(run: Path) -> None:
    """The hashes of a run, whose base was rounded meanwhile, are of float32 weights."""
    policy, _ = open_run(run).result()
    summary = json.loads((run / "summary.json").read_text())
    assert {"frechet_inf", "precision", "recall", "agreement", "diversity"} <= set(summary["final"])
    assert parameters_sha256(policy) == summary["policy_sha256"]
    assert parameters_sha256(policy.network.base()) == summary["base_sha256"]
    assert {p.dtype for p in policy.parameters()} == {torch.float32}


def test_from_pictures_with_captions(settings, pipeline_folder, tmp_path, monkeypatch):
    """The critic sees latents of pictures with the caption that the generated ones have."""
    captioned(tmp_path / "pictures", [PROMPTS[i % 2] for i in range(20)])
    own = [s for s in settings if not s.startswith(("prompts.", "data.", "policy."))]
    own += ["data.name=images", f"data.path={tmp_path / 'pictures'}", "data.image_size=16"]
    with pytest.raises(UserError, match=r"data.captions: .* needs pictures with captions"):
        resolve(load_config("images", own))
    own += ["data.captions=txt", "algorithm=pathwise", "critic.regulariser=none"]
    with pytest.raises(UserError, match=r"data.channels: the autoencoder of .* takes 3, got 1"):
        resolve(load_config("images", [*own, "data.channels=1"]))
    config, data = resolve(load_config("images", own))
    assert config.samples.prompts.texts == tuple(sorted(PROMPTS[:2]))
    vae = AutoencoderKL.from_pretrained(pipeline_folder / "vae")
    pictures = data.train[:3] / 127.5 - 1
    torch.testing.assert_close(data.latents[:3], vae.encode(pictures).latent_dist.mode() * 0.5)
    x = data.latents[:2].clone().requires_grad_()  # what a reward with a gradient gets
    data.units.in_units(x)[:, 0].mean().backward()
    assert x.grad.abs().sum() > 0
    labels = torch.tensor([0, 1, 0, 1])
    drawn = data.batch(4, torch.Generator().manual_seed(0), labels)
    for latent, label in zip(drawn, labels, strict=True):
        same = data.labels[(data.latents == latent).flatten(1).all(1)]
        assert (same == label).all()
        assert len(same)
    monkeypatch.setattr(classifier, "NUM_ITERATIONS", 2)
    own += ["metrics.distance=frechet_inf", "metrics.full_step=off", "policy.lora.rank=2"]
    run = ["train", "images", *own, "model.precision=bfloat16", "--out", str(tmp_path / "run")]
    assert main(run) == 0
    has_whole_weights(tmp_path / "run")
    critic = load(tmp_path / "run" / "checkpoints" / "000002").tensors["critic"]
    seen = critic["network.embeddings"]  # what tells the two captions apart
    means = data.embeddings["prompts"][:2].mean(dim=1)
    along = torch.nn.functional.cosine_similarity(seen[0] - seen[1], means[0] - means[1], dim=0)
    assert along == pytest.approx(1.0)
    assert critic["network.project.weight"].shape == (64, 16)
    table = pa.table(
        {
            "picture": [p.read_bytes() for p in sorted((tmp_path / "pictures").glob("*.png"))],
            "says": [PROMPTS[i % 2] for i in range(20)],
        }
    )
    pq.write_table(table, tmp_path / "table.parquet")
    of_table = [f"data.path={tmp_path / 'table.parquet'}", "data.captions=says"]
    _, again = resolve(load_config("images", [*own, *of_table]))
    assert again.units.samples.prompts == data.units.samples.prompts
    said = tmp_path / "said.jsonl"
    rows = [{"prompt": prompt, "number": i} for i, prompt in enumerate(PROMPTS)]
    said.write_text("\n".join(map(json.dumps, rows[:2])))
    of_both = [*own, f"prompts.path={said}"]
    with pytest.raises(UserError, match=r"prompts.path: .* say by prompts.metadata what rewards"):
        resolve(load_config("images", of_both))
    _, again = resolve(load_config("images", [*of_both, "prompts.metadata=[number]"]))
    found = again.units.samples.prompts
    assert dict(zip(found.texts, found.metadata, strict=True)) == {
        row["prompt"]: {"number": row["number"]} for row in rows[:2]
    }
    for some, words in (
        (rows, "1 of its prompts have no picture, as 'seven'"),
        (rows[:1], "1 captions of pictures are not in it, as 'a thick two'"),
    ):
        said.write_text("\n".join(map(json.dumps, some)))
        with pytest.raises(UserError, match=words):
            resolve(load_config("images", [*of_both, "prompts.metadata=[number]"]))


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_what_is_no_such_pipeline_is_one_line(settings, pipeline_folder, tmp_path):
    def refused(*own: str, words: str, folder: Path = pipeline_folder) -> None:
        with pytest.raises(UserError) as error:
            resolve(load_config("images", [*settings, f"pretrained.path={folder}", *own]))
        assert words in str(error.value), error.value
        assert "\n" not in str(error.value)

    refused("data.image_size=17", words="data.image_size: ")
    refused("data.num_points=5", words="5 pictures of 3 prompts; take at least 6")
    refused("prompts.column=a", words="prompts.column: ")
    refused("policy.lora.targets=[q_proj]", words="to_k, to_out.0, to_q, to_v")
    refused("critic.kind=mlp", words="critic.kind")
    for number, (file, values, words) in enumerate(
        [
            ("model_index.json", {"_class_name": "StableVideoDiffusionPipeline"}, "is a StableVid"),
            ("model_index.json", {"text_encoder": None}, "has no text_encoder"),
            ("model_index.json", {"text_encoder": ["t", "T5EncoderModel"]}, "is a T5EncoderModel"),
            ("unet/config.json", {"in_channels": 9}, "inpainting"),
            (
                "unet/config.json",
                {"cross_attention_dim": 32},
                "takes 32 numbers of a prompt as prompts",
            ),
            ("unet/config.json", {"addition_embed_type": "text"}, "addition_embed_type"),
            ("unet/config.json", {"addition_embed_type": "text_time"}, "as pooled, the text enc"),
            ("unet/config.json", {"layers_per_block": 2}, "do not fit its network"),
        ]
    ):
        folder = tmp_path / str(number)
        shutil.copytree(pipeline_folder, folder)
        change(folder / file, **values)
        refused(words=words, folder=folder)
    shutil.copytree(pipeline_folder, tmp_path / "a")
    (tmp_path / "a" / "vae" / "diffusion_pytorch_model.safetensors").rename(
        tmp_path / "a/vae/x.bin"
    )
    refused(words="safetensors only; there are: x.bin", folder=tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "vae")
    refused(words="has no vae", folder=tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "tokenizer")
    refused(words="has no tokenizer", folder=tmp_path / "a")
    with pytest.raises(UserError, match="needs the folder of a text-to-image pipeline"):
        resolve(load_config("digits", [s for s in settings if s.startswith("prompts.path")]))


def test_computed_again_gradients_are_the_same_with_less_kept(settings):
    """Also of an adapter, whose first layers have no gradient."""
    kept, grads = [], []
    for given in ("false", "true"):
        own = [*settings, f"model.gradient_checkpointing={given}"]
        config, data = resolve(load_config("images", own))
        network, _ = full_step_network(config, data)
        policy = policy_of(config, network)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if ".lora_B." in name:
                    parameter.fill_(0.01)
        latents = torch.ones(2, 4, 8, 8)
        policy.mean(latents, torch.tensor(1), ONE).square().sum().backward()
        grads.append([p.grad for p in policy.parameters() if p.grad is not None])
        with torch.device("meta"):
            kept.append(activation_bytes(policy_of(config, network_of(config)), 2))
    assert len(grads[0]) > 20
    for plain, again in zip(*grads, strict=True):
        torch.testing.assert_close(plain, again)
    assert kept[1] < 0.5 * kept[0]
