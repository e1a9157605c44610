"""State dicts of NVlabs' EDM networks: what they consist of, and the noise they were trained on."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from sft_rl.errors import UserError
from sft_rl.networks.edm import Architecture
from sft_rl.pretrained.states import State

PRECONDITIONINGS = {
    "EDMPrecond": "edm",
    "VPPrecond": "vp",
    "VEPrecond": "ve",
    "iDDPMPrecond": "iddpm",
}
"""NVlabs' classes around the networks, by the setting."""
LEVELS = "u"
"""The noise levels of iDDPMPrecond, decreasing to 0, which are in its state dict."""
KEY = "preconditioning"
"""Where ``examples/edm_weights.py`` writes that class in a .safetensors file."""


def is_edm(state: State) -> bool:
    """Whether a state dict is one of an EDM network."""
    return any(name.endswith("map_layer0.weight") for name in state)


def edm_weights(state: State) -> State:
    """The U-Net's weights, float32, without what only the augmentation of training had."""
    return {
        name.removeprefix("model."): tensor.float()
        for name, tensor in state.items()
        if name != LEVELS and not name.endswith(("map_augment.weight", "map_augment.bias"))
    }


def edm_sections(file: Path, state: State, preconditioning: str | None) -> dict[str, Any]:
    """Settings of `model` and `noise` that a network's weights, and its file, tell.

    Args:
        file: Of the weights; one that the example wrote says how the network is called.
        state: Its state dict.
        preconditioning: `pretrained.preconditioning`, where the file does not say so.

    Raises:
        UserError: If nobody says how the network is called.
    """
    known = preconditioning or ("iddpm" if LEVELS in state else _written(file))
    if known is None:
        raise UserError(
            f"pretrained.preconditioning: {file} is a network of EDM, which does not say how it is "
            "called; set edm (EDMPrecond), vp (VPPrecond) or ve (VEPrecond)"
        )
    if (known == "iddpm") != (LEVELS in state):
        raise UserError(
            f"pretrained.preconditioning: {known!r}, but {file} has "
            f"{'' if LEVELS in state else 'not '}the noise levels of iDDPMPrecond"
        )
    try:
        net = dataclasses.asdict(_architecture(edm_weights(state), known))
        net = {name: list(v) if isinstance(v, tuple) else v for name, v in net.items()}
    except (KeyError, ValueError, StopIteration) as error:
        raise UserError(f"pretrained.path: {file} is no whole network of EDM: {error}") from error
    model: dict[str, Any] = {"kind": "edm", "unet": net, "prediction": "epsilon"}
    if known == "edm":
        model |= {"prediction": "edm", "sigma_data": 0.5}
        return {"model": model, "noise": {"path": "ve", "sigma_min": 0.002, "sigma_max": 80.0}}
    if known == "ve":
        return {"model": model, "noise": {"path": "ve", "sigma_min": 0.02, "sigma_max": 100.0}}
    betas = _vp_betas() if known == "vp" else _betas_of(state[LEVELS])
    noise = {"path": "vp", "betas": betas, "num_train_timesteps": len(betas)}
    return {"model": model, "noise": noise}


def _written(file: Path) -> str | None:
    if file.suffix != ".safetensors":
        return None
    with safe_open(file, framework="pt") as content:
        return PRECONDITIONINGS.get((content.metadata() or {}).get(KEY, ""))


def _architecture(state: State, preconditioning: str) -> Architecture:
    """Read it off the names and shapes of the weights."""
    names = sorted({name.split(".")[1] for name in state if name.startswith("enc.")})
    sizes = sorted({int(name.split("x")[0]) for name in names}, reverse=True)
    first = f"enc.{sizes[0]}x{sizes[0]}"
    stem, layer = state[f"{first}_conv.weight"], state["map_layer0.weight"]
    label = state.get("map_label.weight")
    kinds = {re.sub(r"^\d+x\d+_", "", name.split(".")[1]) for name in state if "_aux_" in name}
    filters = (tensor for name, tensor in state.items() if name.endswith("resample_filter"))
    return Architecture(
        resolution=sizes[0],
        channels=stem.shape[1],
        stem=stem.shape[0],
        widths=tuple(state[f"enc.{n}x{n}_block0.conv1.weight"].shape[0] for n in sizes),
        num_blocks=len([name for name in names if name.startswith(f"{sizes[0]}x{sizes[0]}_block")]),
        attention=tuple(n for n in sizes if f"enc.{n}x{n}_block0.qkv.weight" in state),
        num_noise=layer.shape[1],
        num_embedding=layer.shape[0],
        num_labels=0 if label is None else label.shape[1],
        is_adm="out_norm.weight" in state,
        is_fourier="map_noise.freqs" in state,
        encoder=next((k for k in ("skip", "residual") if f"aux_{k}" in kinds), "standard"),
        decoder="skip" if "aux_up" in kinds else "standard",
        num_taps=next(filters).shape[-1],
        preconditioning=preconditioning,
    )


def _betas_of(levels: Tensor) -> list[float]:
    """Those of the DDPM whose time t has the noise of the t-th last level but 0."""
    alpha_bar = 1.0 / (1.0 + levels[:-1].double().flip(0) ** 2)
    previous = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    return (1.0 - alpha_bar / previous).tolist()


def _vp_betas() -> list[float]:
    """The VP SDE at t = 1e-5, 1/999 … 1, by the numbers of VPPrecond: 999 t are our times."""
    t = np.maximum(np.arange(1000) / 999.0, 1e-5)
    log_bar = -(0.5 * 19.9 * t**2 + 0.1 * t)
    return [float(beta) for beta in -np.expm1(np.diff(log_bar, prepend=0.0))]
