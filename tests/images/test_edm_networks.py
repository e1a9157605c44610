"""NVlabs' EDM networks: read from their state dicts, and their outputs by their weights' names.

The reference below takes a state dict alone, in the names and the order that NVlabs' code gives it,
and does what Karras et al. (2022), Song et al. (2021) and Dhariwal and Nichol (2021) say.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from sft_rl.cli import main
from sft_rl.config.files import load_config
from sft_rl.diffusion.noise import path_of
from sft_rl.errors import UserError
from sft_rl.networks.edm import Architecture, EDMUNet
from sft_rl.runs.parts import full_step_network
from sft_rl.runs.resolve import resolve

PLAIN: dict[str, Any] = {
    "resolution": 8,
    "channels": 1,
    "stem": 8,
    "widths": (8, 16),
    "num_blocks": 1,
    "attention": (4,),
    "num_noise": 8,
    "num_embedding": 16,
    "num_labels": 0,
    "is_adm": False,
    "is_fourier": False,
    "encoder": "standard",
    "decoder": "standard",
    "num_taps": 2,
    "preconditioning": "edm",
}
NETS = {
    "DDPM++": PLAIN,
    "DDPM++ of classes": {**PLAIN, "num_labels": 10},
    "NCSN++": {**PLAIN, "is_fourier": True, "encoder": "residual", "num_taps": 4, "num_noise": 16},
    "NCSN++ with skips": {**PLAIN, "encoder": "skip", "decoder": "skip", "num_taps": 4},
    "ADM": {**PLAIN, "is_adm": True, "stem": 32, "widths": (32, 128), "num_labels": 10},
}
NAMES = {
    "DDPM++": ["enc.8x8_conv.weight", "enc.4x4_down.conv0.resample_filter", "dec.4x4_in0.qkv.bias"],
    "DDPM++ of classes": ["map_label.bias", "enc.4x4_down.skip.weight", "dec.8x8_aux_conv.weight"],
    "NCSN++": ["map_noise.freqs", "enc.4x4_aux_residual.resample_filter"],
    "NCSN++ with skips": ["enc.4x4_aux_skip.weight", "dec.8x8_aux_up.resample_filter"],
    "ADM": ["out_norm.weight", "enc.4x4_down.skip.resample_filter", "dec.8x8_block1.affine.weight"],
}


def random_state(net: dict[str, Any]) -> dict[str, Tensor]:
    """Weights none of which is zero, by the names of the network, in a Precond's state dict."""
    torch.manual_seed(0)
    state = EDMUNet(Architecture(**net)).state_dict()
    filled = {
        name: tensor if name.endswith("resample_filter") else 0.3 * torch.randn_like(tensor)
        for name, tensor in state.items()
    }
    augment = {"map_augment.weight": torch.randn(net["num_noise"], 9)}
    return {f"model.{name}": tensor for name, tensor in (filled | augment).items()}


class Reference:
    """What a state dict computes."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.s = {name.removeprefix("model."): tensor for name, tensor in state.items()}
        self.adm = "out_norm.weight" in self.s

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.s[f"{name}.weight"], self.s.get(f"{name}.bias"))

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.s[f"{name}.weight"], self.s[f"{name}.bias"]
        eps = 1e-5 if self.adm else 1e-6
        return F.group_norm(x, min(32, len(weight) // 4), weight, bias, eps)

    def conv(self, name: str, x: Tensor, sized: str = "", *, fused: bool = False) -> Tensor:
        weight, taps = self.s.get(f"{name}.weight"), self.s.get(f"{name}.resample_filter")

        def resize(y: Tensor, pad: int) -> Tensor:
            c = y.shape[1]
            kernel = taps.repeat(c, 1, 1, 1)
            if sized == "up":
                return F.conv_transpose2d(y, 4 * kernel, stride=2, padding=pad, groups=c)
            return F.conv2d(y, kernel, stride=2, padding=pad, groups=c)

        pad = 0 if taps is None else (taps.shape[-1] - 1) // 2
        if fused:
            x = resize(F.conv2d(x, weight, padding=1 + pad), 0)
            return x + self.s[f"{name}.bias"].view(1, -1, 1, 1)
        if taps is not None:
            x = resize(x, pad)
        if weight is None:
            return x
        return F.conv2d(x, weight, self.s[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def block(self, name: str, x: Tensor, emb: Tensor) -> Tensor:
        sized = next((kind for kind in ("up", "down") if name.endswith(f"_{kind}")), "")
        h = self.conv(f"{name}.conv0", F.silu(self.norm(f"{name}.norm0", x)), sized)
        told = self.linear(f"{name}.affine", emb)[:, :, None, None]
        if self.adm:
            scale, shift = told.split(h.shape[1], dim=1)
            h = F.silu(self.norm(f"{name}.norm1", h) * (1 + scale) + shift)
        else:
            h = F.silu(self.norm(f"{name}.norm1", h + told))
        has_skip = any(n.startswith(f"{name}.skip.") for n in self.s)
        x = self.conv(f"{name}.skip", x, sized) if has_skip else x
        half = 1.0 if self.adm else math.sqrt(0.5)
        x = (self.conv(f"{name}.conv1", h) + x) * half
        if f"{name}.qkv.weight" not in self.s:
            return x
        b, c, height, width = x.shape
        heads = c // 64 if self.adm else 1
        qkv = self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", x))
        q, k, v = qkv.reshape(b * heads, c // heads, 3, height * width).unbind(2)
        weights = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(c // heads)).softmax(2)
        a = torch.einsum("nqk,nck->ncq", weights, v).reshape(x.shape)
        return (self.conv(f"{name}.proj", a) + x) * half

    def embedding(self, noise: Tensor, classes: Tensor | None) -> Tensor:
        if "map_noise.freqs" in self.s:
            angles = noise[:, None] * 2 * math.pi * self.s["map_noise.freqs"]
        else:
            half = self.s["map_layer0.weight"].shape[1] // 2
            step = torch.arange(half) / (half if self.adm else half - 1)
            angles = noise[:, None] * (1 / 10_000) ** step
        cos, sin = angles.cos(), angles.sin()
        if self.adm:
            h = self.linear(
                "map_layer1", F.silu(self.linear("map_layer0", torch.cat([cos, sin], 1)))
            )
            return F.silu(h if classes is None else h + self.linear("map_label", classes))
        h = torch.cat([sin, cos], 1)
        if classes is not None:
            h = h + self.linear("map_label", classes * math.sqrt(classes.shape[1]))
        return F.silu(self.linear("map_layer1", F.silu(self.linear("map_layer0", h))))

    def layers(self, side: str) -> list[str]:
        return list(dict.fromkeys(n.split(".")[1] for n in self.s if n.startswith(side)))

    def __call__(self, x: Tensor, noise: Tensor, classes: Tensor | None = None) -> Tensor:
        emb, skips, beside = self.embedding(noise, classes), [], x
        layers = {
            side: dict.fromkeys(n.split(".")[1] for n in self.s if n.startswith(side))
            for side in ("enc", "dec")
        }
        for layer in layers["enc"]:
            name = f"enc.{layer}"
            if "aux_down" in layer:
                beside = self.conv(name, beside)
            elif "aux_skip" in layer:
                x = skips[-1] = x + self.conv(name, beside)
            elif "aux_residual" in layer:
                x = skips[-1] = beside = (x + self.conv(name, beside, fused=True)) / math.sqrt(2)
            else:
                x = self.conv(name, x) if layer.endswith("_conv") else self.block(name, x, emb)
                skips.append(x)
        image = None
        for layer in self.layers("dec."):
            name = f"dec.{layer}"
            if "aux_up" in layer:
                image = self.conv(name, image, "up")
            elif "aux_norm" in layer:
                h = F.silu(self.norm(name, x))
            elif "aux_conv" in layer:
                image = self.conv(name, h) if image is None else image + self.conv(name, h)
            else:
                if re.search(r"block\d+$", layer):
                    x = torch.cat([x, skips.pop()], dim=1)
                x = self.block(name, x, emb)
        return self.conv("out_conv", F.silu(self.norm("out_norm", x))) if self.adm else image


def settings_of(file: Path, tiny: tuple[str, ...], *more: str) -> list[str]:
    mine = [s for s in tiny if not s.startswith(("model.unet", "noise.num_train_timesteps"))]
    return [
        *mine,
        f"pretrained.path={file}",
        "metrics.full_step=5",
        "metrics.distance=sliced_wasserstein",
        *more,
    ]


@pytest.mark.parametrize("name", NETS)
def test_outputs_are_those_of_the_weights_by_their_names(
    name: str, tmp_path: Path, tiny_digits: tuple[str, ...]
):
    state = random_state(NETS[name])
    assert {f"model.{one}" for one in NAMES[name]} <= state.keys()
    file, has_classes = tmp_path / "net.pt", NETS[name]["num_labels"] > 0
    torch.save(state, file)
    config, data = resolve(
        load_config("digits", settings_of(file, tiny_digits, "pretrained.preconditioning=edm"))
    )
    assert config.model.num_classes == NETS[name]["num_labels"]
    network, there = full_step_network(config, data)
    assert there
    x, noise = torch.randn(3, 1, 8, 8), torch.tensor([-1.5, 0.1, 1.0])
    labels = torch.tensor([0, 9, 10]) if has_classes else None  # the last is none
    one_hot = F.one_hot(labels, 11)[:, :10].float() if has_classes else None
    with torch.no_grad():
        found = network(x, noise, *(() if labels is None else (labels,)))
        wanted = Reference(state)(x, noise, one_hot)
        assert wanted.std() > 0.1
        assert torch.allclose(found, wanted, atol=2e-5 * wanted.abs().max())


def test_iddpms_own_levels_are_its_times_and_its_variance_is_left_out(
    tmp_path: Path, tiny_digits: tuple[str, ...]
):
    """D(x; u_j) = x - u_j F(x / sqrt(u_j^2 + 1), M - 1 - j), the first half of F's channels."""
    net = {**NETS["ADM"], "preconditioning": "iddpm"}
    u = torch.cat([torch.logspace(1.2, -2, 40), torch.zeros(1)])
    state = {**random_state(net), "u": u}
    torch.save(state, tmp_path / "net.pt")
    given = settings_of(tmp_path / "net.pt", tiny_digits, "sampler.start_time=30")
    resolved = resolve(load_config("digits", given))
    path = path_of(resolved[0].noise)
    network, _ = full_step_network(*resolved)
    j = torch.tensor([0, 7, 39])
    alpha, sigma = path.levels(39.0 - j)
    torch.testing.assert_close((sigma / alpha).float(), u[j], rtol=1e-4, atol=1e-6)
    x, s = torch.randn(3, 1, 8, 8), u[j][:, None, None, None]
    with torch.no_grad():
        classes = torch.zeros(3, 10)
        scaled = x / (s**2 + 1).sqrt()
        wanted = Reference(state)(scaled, 39.0 - j, classes)[:, :1]
        found = network(scaled, path.network_times(39.0 - j), torch.full((3,), 10))
    assert torch.allclose(found, wanted, atol=2e-5 * wanted.abs().max())
    torch.save(random_state(net), tmp_path / "no_levels.pt")
    given = settings_of(tmp_path / "no_levels.pt", tiny_digits, "pretrained.preconditioning=iddpm")
    with pytest.raises(UserError, match="has not the noise levels of iDDPMPrecond"):
        resolve(load_config("digits", given))


@pytest.mark.parametrize("kind", ["EDMPrecond", "VPPrecond", "VEPrecond"])
def test_a_precond_gives_its_x_0_at_any_sigma(
    kind: str, tmp_path: Path, tiny_digits: tuple[str, ...]
):
    """D(x; sigma) by the table of Karras et al., against our path, prediction and network."""
    state = random_state(PLAIN)
    save_file(state, tmp_path / "net.safetensors", metadata={"preconditioning": kind})
    resolved = resolve(
        load_config("digits", settings_of(tmp_path / "net.safetensors", tiny_digits))
    )
    config, path = resolved[0], path_of(resolved[0].noise)
    network, _ = full_step_network(*resolved)
    times = torch.tensor([3.0, 250.0, 700.0, 998.0])
    alpha, sigma_t = path.levels(times)
    sigma = sigma_t / alpha  # of x / alpha, which is what a Precond is given
    x = torch.randn(4, 1, 8, 8)
    s = sigma[:, None, None, None]
    f = Reference(state)
    with torch.no_grad():
        if kind == "EDMPrecond":
            skip, out = 0.25 / (s**2 + 0.25), s * 0.5 / (s**2 + 0.25).sqrt()
            wanted = skip * x + out * f(x / (s**2 + 0.25).sqrt(), sigma.log() / 4)
        elif kind == "VEPrecond":
            wanted = x + s * f(x, (sigma / 2).log())
        else:
            t = ((0.1**2 + 2 * 19.9 * (1 + sigma.double() ** 2).log()).sqrt() - 0.1) / 19.9
            assert torch.allclose(t.float() * 999, times, rtol=1e-3)
            wanted = x - s * f(x / (s**2 + 1).sqrt(), (999 * t).float())
        levels = alpha[:, None, None, None], sigma_t[:, None, None, None]
        prediction = config.model.prediction
        if prediction == "edm":
            scaled = x / (s**2 + 0.25).sqrt()
            output = network(scaled, sigma.log() / 4)
            found = 0.25 / (s**2 + 0.25) * x + 0.5 * s / (s**2 + 0.25).sqrt() * output
        else:
            output = network(levels[0] * x, path.network_times(times))
            found = x - s * output
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max())


def test_one_is_tuned_and_sampled_from_its_runs_folder(
    tmp_path: Path, tiny_digits: tuple[str, ...]
):
    state = random_state(NETS["DDPM++ of classes"])
    small = {name: 0.1 * t if t.is_floating_point() else t for name, t in state.items()}
    save_file(small, tmp_path / "net.safetensors", metadata={"preconditioning": "EDMPrecond"})
    given = settings_of(tmp_path / "net.safetensors", tiny_digits, "sampler.num_steps=1")
    assert main(["train", "digits", *given, "--out", str(tmp_path / "run")]) == 0
    (tmp_path / "net.safetensors").unlink()
    words = ["sample", str(tmp_path / "run"), "--num", "3", "--label", "2", "--out"]
    assert main([*words, str(tmp_path / "a.npy")]) == 0
    assert np.load(tmp_path / "a.npy").shape == (3, 1, 8, 8)
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "program")]) == 0
    program = torch.export.load(tmp_path / "program" / "sampler.pt2").module()
    for num in (1, 4):
        labels = torch.full((num,), 2)
        pixels = program(noise=torch.randn(num, 2, 1, 8, 8), condition=labels)
        assert pixels.shape == (num, 1, 8, 8)
        assert 0 <= pixels.min() <= pixels.max() <= 16


def test_what_is_not_one_is_one_line(tmp_path: Path, tiny_digits: tuple[str, ...]):
    state = random_state(PLAIN)
    torch.save(state, tmp_path / "net.pt")
    torch.save({k: v for k, v in state.items() if "_conv" not in k}, tmp_path / "part.pt")
    torch.save(random_state({**PLAIN, "resolution": 16}), tmp_path / "large.pt")
    (tmp_path / "net.pkl").write_bytes(b"\x80\x04N.")
    for file, more, words in (
        (
            "net.pkl",
            (),
            r"is a pickle, which runs code .*python examples/edm_weights.py .*net.safetensors",
        ),
        ("net.pt", (), "pretrained.preconditioning: .* set edm .* vp .* or ve"),
        ("part.pt", ("pretrained.preconditioning=vp",), "is no whole network of EDM: "),
        (
            "net.pt",
            ("pretrained.preconditioning=ve", "noise.sigma_max=80"),
            "noise.sigma_max: 80.0 contradicts",
        ),
        (
            "large.pt",
            ("pretrained.preconditioning=edm",),
            "is for images 1x16x16, the data's are 1x8x8",
        ),
    ):
        with pytest.raises(UserError, match=words) as error:
            resolve(load_config("digits", settings_of(tmp_path / file, tiny_digits, *more)))
        assert "\n" not in str(error.value)
