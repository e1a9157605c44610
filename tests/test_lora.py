"""Low-rank adapters: peft's own, trained, kept and sent alone."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from peft import PeftModel
from safetensors.torch import load_file, save_file

import sft_rl
from sft_rl.algorithms import Networks
from sft_rl.cli import main
from sft_rl.config.files import load_config
from sft_rl.errors import UserError
from sft_rl.networks.lora import Adapted, inner_of
from sft_rl.policy import to_arrays
from sft_rl.runs.folder import RunFolder
from sft_rl.runs.parts import network_of, networks_of
from sft_rl.runs.resolve import resolve
from sft_rl.storage.checkpoint import load, parameters_sha256

ATTENDS = {
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 4,
}


@pytest.fixture(scope="module")
def attending(tiny_unet: dict[str, object], tiny_digits: tuple[str, ...]) -> list[str]:
    """Settings of a run of a tiny U-Net with attention."""
    unet = {**tiny_unet, **ATTENDS}
    own = [s for s in tiny_digits if not s.startswith("model.")]
    return [*own, *(f"model.unet.{name}={value}" for name, value in unet.items())]


def networks(attending: list[str], *settings: str) -> Networks:
    config, _ = resolve(load_config("digits", [*attending, *settings]))
    torch.manual_seed(0)
    return networks_of(config, network_of(config))


def moved(adapted: Adapted) -> Adapted:
    """With an adapter that changes something."""
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    return adapted


def test_only_the_adapter_is_trained_sent_and_kept(attending: list[str]):
    of = networks(attending, "policy.lora.rank=2")
    adapted, pretrained = of.policy.network, of.pretrained.network
    trained = {n for n, p in of.policy.network.named_parameters("network") if p.requires_grad}
    assert len(trained) == 3 * 4 * 2  # three attentions of four projections, A and B of each
    assert trained == {name for name in of.policy.state_dict() if "lora_" in name}
    assert {name for name in to_arrays(of.policy) if "network" in name} == trained
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 9.0])
    assert torch.equal(adapted(x, t), pretrained(x, t))  # B is zero
    other = copy.deepcopy(of.policy)
    shared = {id(p) for p in other.parameters()} & {id(p) for p in of.policy.parameters()}
    assert len(shared) == len(list(adapted.parameters())) - len(trained)
    resting = list(adapted.resting())
    assert all(a is b for a, b in zip(resting, other.network.resting(), strict=True))
    num_resting = sum(p.numel() for module in resting for p in module.parameters())
    assert num_resting == sum(p.numel() for p in adapted.parameters() if not p.requires_grad)
    moved(adapted)
    assert not torch.equal(adapted(x, t), pretrained(x, t))
    assert not torch.equal(adapted(x, t), other.network(x, t))
    other.load_state_dict(of.policy.state_dict())
    assert torch.equal(adapted(x, t), other.network(x, t))
    with pytest.raises(RuntimeError, match="lora_A"):
        other.load_state_dict({k: v for k, v in of.policy.state_dict().items() if "_A" not in k})


def test_merged_and_base_are_plain_networks(attending: list[str]):
    of = networks(attending, "policy.lora.rank=2", "policy.lora.alpha=6")
    adapted = moved(of.policy.network)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 9.0])
    base, merged = adapted.base(), adapted.merged()
    assert type(base) is type(merged) is type(adapted.network)
    assert torch.equal(base(x, t), of.pretrained.network(x, t))
    torch.testing.assert_close(merged(x, t), adapted(x, t), rtol=1e-4, atol=1e-5)
    assert not any("lora" in name for name in [*base.state_dict(), *merged.state_dict()])
    assert torch.equal(adapted.base()(x, t), base(x, t))  # merging left it as it was


def test_the_adapter_alone_is_pefts(attending: list[str], tmp_path: Path):
    """A run, its folder, and what peft makes of its adapter."""
    run, out = tmp_path / "run", tmp_path / "adapter"
    settings = [*attending, "metrics.distance=sliced_wasserstein", "policy.lora.rank=2"]
    assert main(["train", "digits", *settings, "policy.lora.alpha=4", "--out", str(run)]) == 0
    store = RunFolder.open(run)
    policy, tensors = store.result()
    assert all("lora_" in name for name in tensors["average"] if name.startswith("network."))
    assert parameters_sha256(policy) == store.read_summary()["policy_sha256"]
    base = UNet2DModel.from_config(inner_of(policy.network.network).config)
    kept = load(run / "base").tensors["network"]
    base.load_state_dict({name.removeprefix("unet."): tensor for name, tensor in kept.items()})
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 9.0])
    assert not torch.allclose(base(x, t).sample, policy.network(x, t), atol=1e-5)
    assert main(["export", str(run), "--out", str(out), "--adapter"]) == 0
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), out)
    torch.testing.assert_close(theirs(x, t).sample, policy.network(x, t))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_file(out / "adapter_model.safetensors")
    again = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    merged = sft_rl.load_sampler(run).to_diffusers().unet
    torch.testing.assert_close(merged(x, t).sample, policy.network(x, t), rtol=1e-4, atol=1e-5)
    save_file(kept, run / "base" / "network.safetensors")  # another header: damaged
    (run / "base" / "manifest.json").unlink()
    assert main(["sample", str(run), "--num", "2", "--out", str(tmp_path / "a.npy")]) == 2


def test_points_resumed(tmp_path: Path, tiny_settings: tuple[str, ...]):
    """Without attention all layers get one; half a run at a URL and the rest is a whole one."""
    settings = [*tiny_settings, "policy.lora.rank=1", "algorithm=nft", "training.lr_decay=none"]
    config = load_config("swiss_roll", settings)
    whole = sft_rl.fine_tune(config, out=tmp_path / "whole", observer=None)
    assert whole.metrics["base_sha256"] != whole.metrics["policy_sha256"]
    url = (tmp_path / "half").as_uri()
    half = load_config("swiss_roll", [*settings, "training.num_iterations=2"])
    sft_rl.fine_tune(half, out=url, observer=None)
    rest = sft_rl.fine_tune(config, out=url, observer=None, resume=True)
    assert rest.metrics["policy_sha256"] == whole.metrics["policy_sha256"]
    again = sft_rl.load_sampler(url)  # with the base that lies there
    assert np.array_equal(again.sample(5, seed=1), rest.sampler.sample(5, seed=1))
    program = rest.sampler.to_program().module()
    noise = torch.randn(3, 5, 2)
    drawn = program(noise=noise)
    latents = noise[:, 0]
    for k in range(4):
        mean = rest.sampler.policy.mean(latents, torch.tensor(k))
        latents = mean + rest.sampler.policy.step_std(torch.tensor(k)) * noise[:, k + 1]
    np.testing.assert_allclose(
        drawn.detach(), rest.sampler.units.to_data(latents.detach()), rtol=1e-4, atol=1e-5
    )


def test_what_does_not_go_is_one_line(attending: list[str]):
    for settings, words in (
        (["policy.lora.rank=0"], "greater than or equal to 1, got 0"),
        (["policy.lora.alpha=2"], "goes with policy.lora.rank"),
        (["policy.lora.rank=2", "policy.lora.targets=[q_proj]"], "conv1, conv2, conv_in"),
        (["policy.lora.rank=2", "policy.lora.targets=[to_q,norm1]"], "to_out.0, to_q"),
    ):
        with pytest.raises(UserError) as error:
            networks(attending, *settings)
        assert words in str(error.value)
        assert "\n" not in str(error.value)
