"""Folders of diffusers give the noise, the network and the sampler that they should."""

import hashlib
import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from of_others import config_of, network_of
from safetensors.torch import load_file, save_file
from torch import nn

from sft_rl.cli import main
from sft_rl.config import NoiseConfig
from sft_rl.diffusion.noise import path_of
from sft_rl.diffusion.prediction import Prediction, data_of
from sft_rl.diffusion.schedule import own_steps
from sft_rl.errors import UserError
from sft_rl.export.few_step_pipeline import FewStepPipeline
from sft_rl.policy import DenoisingPolicy
from sft_rl.pretrained.schedulers import OF_EDM, OF_FLOW, OF_SCORE, SUPPORTED
from sft_rl.runs.folder import RunFolder


def write_pipeline(folder: Path, unet: dict[str, object], **scheduler: object) -> UNet2DModel:
    torch.manual_seed(0)
    model = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **unet)
    options = {"num_train_timesteps": 40, "beta_start": 0.001, "beta_end": 0.3, **scheduler}
    DDPMPipeline(model, DDPMScheduler(**options)).save_pretrained(folder)
    return model


def test_a_folder_of_diffusers_gives_its_model_and_noise(tmp_path, tiny_unet):
    model = write_pipeline(tmp_path, tiny_unet)
    config = config_of(tmp_path)
    noise = {"num_train_timesteps": 40, "beta_start": 0.001, "beta_end": 0.3}
    assert config.noise == NoiseConfig(schedule="linear", **noise)
    assert config.model.clip_x0 == 1.0  # DDPMScheduler's default
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.0, 7.0, 39.0])
    torch.testing.assert_close(network_of(tmp_path)(x, t), model(x, t).sample)


@pytest.mark.parametrize(
    "scheduler",
    [
        {},
        {"clip_sample": False, "prediction_type": "v_prediction"},
        {"prediction_type": "sample", "clip_sample_range": 0.7, "beta_start": 0.01},
        {"trained_betas": np.linspace(0.01, 0.2, 40).tolist(), "clip_sample_range": 2.0},
        {"variance_type": "fixed_large", "beta_schedule": "squaredcos_cap_v2"},
    ],
)
def test_the_full_step_sampler_is_the_models_own(tmp_path, tiny_unet, scheduler):
    """The same noise through diffusers' pipeline and through ours."""
    write_pipeline(tmp_path, tiny_unet, **scheduler)
    config = config_of(tmp_path)
    steps = own_steps(
        path_of(config.noise),
        Prediction.from_config(config.model),
        variance=config.noise.variance,
    )
    policy = DenoisingPolicy(network_of(tmp_path), steps, shape=(1, 8, 8))
    pipeline = DDPMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    source = torch.Generator().manual_seed(3)
    images = pipeline(4, source, num_inference_steps=40, output_type="pt").images
    drawn = policy.sample(4, torch.Generator().manual_seed(3))
    assert drawn.std() > 0.1
    torch.testing.assert_close((drawn / 2 + 0.5).clamp(0, 1), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SUPPORTED)
def test_every_scheduler_that_is_read_has_the_noise_and_the_x_0_of_ours(tmp_path, tiny_unet, name):
    """x_0 of one output at one level, as the scheduler itself computes it."""
    kind = getattr(diffusers, name)
    scheduler = kind() if name in OF_SCORE else kind(num_train_timesteps=40)
    write_pipeline(tmp_path, tiny_unet)
    scheduler.save_pretrained(tmp_path / "scheduler")
    config = config_of(tmp_path)
    path, prediction = path_of(config.noise), Prediction.from_config(config.model)
    times = np.array([30.0])
    (alpha,), (sigma,) = path.levels(times)
    x, output = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    x_0 = data_of(x, output, (alpha, sigma), prediction.target(alpha, sigma))
    if name in OF_EDM:
        expected = scheduler.precondition_outputs(x, output, sigma)
        scaled = scheduler.precondition_inputs(x, sigma)
        torch.testing.assert_close(scaled, prediction.input_scale(alpha, sigma) * x)
        called_with = prediction.network_times(path.network_times(times), alpha, sigma)
        assert called_with == pytest.approx(scheduler.precondition_noise(sigma))
    elif name in OF_FLOW:
        expected = x - sigma * output
        assert scheduler.timesteps[-31] == pytest.approx(path.network_times(times)[0])
        assert scheduler.sigmas[-32 if len(scheduler.sigmas) > 40 else -31] == pytest.approx(sigma)
    elif name in OF_SCORE:
        expected = x + sigma**2 * output
        assert path.levels(np.array([0.0, 1999.0]))[1] == pytest.approx([0.01, 1348.0])
    else:
        bar = float(scheduler.alphas_cumprod[30])
        assert (alpha, sigma) == pytest.approx((bar**0.5, (1 - bar) ** 0.5), rel=1e-5)
        expected = (x - (1 - bar) ** 0.5 * output) / bar**0.5
    torch.testing.assert_close(x_0, expected, rtol=1e-4, atol=1e-5)


def test_a_learned_variance_is_left_out(tmp_path, tiny_unet):
    torch.manual_seed(0)
    model = UNet2DModel(sample_size=None, in_channels=1, out_channels=2, **tiny_unet)
    scheduler = DDPMScheduler(40, variance_type="learned_range")
    DDPMPipeline(model, scheduler).save_pretrained(tmp_path)
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.0, 7.0, 39.0])
    torch.testing.assert_close(network_of(tmp_path)(x, t), model(x, t).sample[:, :1])


def test_old_names_and_parts_of_weights(tmp_path, tiny_unet):
    """What diffusers wrote before it renamed attention, and what it writes in parts."""
    attends = {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}
    model = write_pipeline(tmp_path, {**tiny_unet, **attends})
    whole = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(whole)
    for name in list(weights):
        for today, before in old.items():
            if f".{today}." in name:
                weights[name.replace(today, before)] = weights.pop(name)
    assert any("proj_attn" in name for name in weights)
    save_file(weights, whole)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 9.0])
    torch.testing.assert_close(network_of(tmp_path)(x, t), model(x, t).sample)
    digest = config_of(tmp_path).pretrained.sha256
    assert digest == hashlib.sha256(whole.read_bytes()).hexdigest()
    whole.unlink()
    model.save_pretrained(tmp_path / "unet", max_shard_size="8KB", variant="fp16")
    parts = sorted((tmp_path / "unet").glob("*-of-*.safetensors"))
    assert len(parts) > 1
    in_parts = network_of(tmp_path, "pretrained.variant=fp16")
    torch.testing.assert_close(in_parts(x, t), model(x, t).sample)
    parts[0].unlink()
    with pytest.raises(UserError, match=parts[0].name):
        config_of(tmp_path, "pretrained.variant=fp16")


def test_a_model_without_a_scheduler_takes_its_noise_from_the_settings(tmp_path, tiny_unet):
    write_pipeline(tmp_path, tiny_unet)
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    config = config_of(tmp_path, "noise.path=flow", "model.prediction=flow")
    assert (config.noise.path, config.model.prediction, config.model.clip_x0) == (
        "flow",
        "flow",
        None,
    )


def test_settings_that_contradict_the_folder_are_refused(tmp_path, tiny_unet):
    write_pipeline(tmp_path, tiny_unet, beta_schedule="scaled_linear")
    agreed = ("noise.num_train_timesteps=40", "noise.schedule=scaled_linear", "model.kind=unet")
    config_of(tmp_path, *agreed, "model.unet.norm_num_groups=4")
    for setting, theirs in (
        ("noise.schedule=cosine", "'scaled_linear'"),
        ("noise.num_train_timesteps=1000", "40"),
        ("model.prediction=v_prediction", "'epsilon'"),
        ("model.unet.layers_per_block=2", "1"),
    ):
        with pytest.raises(UserError) as error:
            config_of(tmp_path, setting)
        key, _, given = setting.partition("=")
        assert str(error.value).startswith(f"{key}: ")
        assert f"{tmp_path} has {theirs}" in str(error.value)
        assert given in str(error.value)


def test_a_variant_is_named(tmp_path, tiny_unet):
    model = write_pipeline(tmp_path, tiny_unet)
    for p in model.parameters():
        nn.init.ones_(p)
    model.save_pretrained(tmp_path / "unet", variant="ema")
    assert not all((p == 1).all() for p in network_of(tmp_path).parameters())
    ema = network_of(tmp_path, "pretrained.variant=ema")
    assert all((p == 1).all() for p in ema.parameters())
    with pytest.raises(UserError, match=r"no diffusion_pytorch_model.fp16.safetensors"):
        network_of(tmp_path, "pretrained.variant=fp16")


def test_a_layout_without_folders_is_read_too(tmp_path, tiny_unet):
    write_pipeline(tmp_path, tiny_unet)
    for part in ("unet", "scheduler"):
        for file in (tmp_path / part).iterdir():
            file.rename(tmp_path / file.name)
        (tmp_path / part).rmdir()
    network_of(tmp_path)


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_what_is_not_supported_is_said_in_one_line(tmp_path, tiny_unet, monkeypatch):
    def refused(folder: Path | str, *words: str) -> None:
        with pytest.raises(UserError) as error:
            network_of(folder)
        assert str(error.value).startswith(("pretrained.path: ", "model.unet: "))
        assert all(word in str(error.value) for word in words), error.value
        assert "\n" not in str(error.value)

    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no network")
    refused(tmp_path / "nothing", "no folder or file")
    (tmp_path / "a.txt").write_text("x")
    refused(tmp_path / "a.txt", "'.txt'")
    cases = [
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "text-to-image"),
        ("unet/config.json", {"num_class_embeds": 10}, "do not fit its network"),
        ("unet/config.json", {"class_embed_type": "identity"}, "class_embed_type is 'identity'"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "needs num_class_embeds"),
        ("unet/config.json", {"in_channels": 3}, "in_channels is 3"),
        ("unet/config.json", {"sample_size": 32}, "sample_size is 32"),
        ("unet/config.json", {"layers_per_block": 2}, "do not fit its network"),
        *(
            ("scheduler/scheduler_config.json", values, words)
            for values, words in (
                ({"prediction_type": "velocity"}, "'velocity'"),
                ({"beta_schedule": "mine"}, "'mine'"),
                ({"_class_name": "CMStochasticIterativeScheduler"}, "DDPMScheduler"),
                ({"_class_name": "FewStepScheduler"}, "FewStepScheduler"),
                ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr: True"),
                ({"thresholding": True}, "thresholding: True"),
                ({"variance_type": "mine"}, "variance_type: 'mine'"),
                ({"new_mathematics": 3}, "new_mathematics: 3"),
            )
        ),
    ]
    for i, (name, values, words) in enumerate(cases):
        write_pipeline(tmp_path / str(i), tiny_unet)
        change(tmp_path / str(i) / name, **values)
        refused(tmp_path / str(i), words)
    write_pipeline(tmp_path / "broken", tiny_unet)
    weights = tmp_path / "broken" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    refused(tmp_path / "broken", "is damaged")
    weights.unlink()
    (weights.parent / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    refused(tmp_path / "broken", "safetensors only", "diffusion_pytorch_model.bin")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("nobody/nothing-at-all", "nobody/nothing-at-all", "network")


def test_from_a_folder_of_diffusers_to_a_pipeline(tmp_path, tiny_unet, tiny_digits):
    write_pipeline(tmp_path / "base", tiny_unet)
    settings = [s for s in tiny_digits if not s.startswith(("model.", "noise."))]
    settings.append("metrics.distance=sliced_wasserstein")  # quicker than a classifier
    path = f"pretrained.path={tmp_path / 'base'}"
    run, out = str(tmp_path / "run"), str(tmp_path / "pipeline")
    for resume in ([], ["--resume"]):  # a finished run has nothing left to do
        assert main(["train", "digits", *settings, path, "--out", run, *resume]) == 0
    digest = RunFolder.open(Path(run)).config.pretrained.sha256
    assert main(["train", "digits", *settings, path, f"pretrained.sha256={digest}0"]) == 2
    assert main(["evaluate", run]) == 0
    assert main(["export", run, "--out", out, "--no-code"]) == 0
    assert FewStepPipeline.from_pretrained(out)(2, output_type="np").images.shape == (2, 8, 8, 1)
