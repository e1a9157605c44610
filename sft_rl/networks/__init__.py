"""The networks: noise prediction, critic and value, built from the configuration.

Every time-conditioned network is called as ``network(x, t)`` with x of shape (..., *shape) and t
broadcastable to (...): the whole (T, B) grid of an update goes through in one call, with t of
shape (T, 1).

If the model is conditional on a class, every network takes labels as its last argument, int64,
broadcastable to (...); if on vectors of D numbers, these, float32, broadcastable to (..., D).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sft_rl.config import CriticConfig, ModelConfig, NoiseConfig, ValueConfig
from sft_rl.errors import UserError
from sft_rl.networks.conditions import PROJECTED, ByLabel, ByProjection, ByPrompt, ByVector
from sft_rl.networks.mlp import PlainMLP, StepScaledMLP, TimeMLP
from sft_rl.networks.own import (
    OwnNetwork,
    OwnValue,
    made_module,
    made_scorer,
    one_condition,
)

if TYPE_CHECKING:
    from sft_rl.networks.unet import UNet  # diffusers is slow to import


def noise_network(
    model: ModelConfig,
    noise: NoiseConfig,
    shape: tuple[int, ...],
    table: tuple[int, ...] | None = None,
) -> nn.Module:
    """Build the denoising network for latents of one shape.

    Args:
        model: Its kind and sizes.
        noise: The path that it is trained on.
        shape: Of a latent.
        table: Shape (K, D) of the vectors that it is conditional on and keeps, or of the embeddings
            of prompts (K + 1, tokens, width); None for none.

    Raises:
        UserError: If the configured kind does not take samples of this shape.
    """
    if model.takes_prompts:
        return _prompted(model, shape, table)
    if model.kind == "own" and model.factory is not None:
        return OwnNetwork(made_module("model.factory", model.factory), shape, table)
    if model.kind == "own":
        raise UserError(
            "model.kind: 'own' is a network that is handed over in Python, as network=…, or made "
            "by a function: name it with model.factory=module:function"
        )
    if model.kind in ("unet", "dit", "edm"):
        return _image_network(model, shape, table)
    dim = _points("model.kind", shape, "unet")
    if model.kind == "paper_mlp":
        if table is not None:
            raise UserError(
                "data.condition_columns: paper_mlp takes no condition; use model.kind=mlp"
            )
        if noise.path != "vp" or model.prediction == "edm":
            raise UserError(
                "model.kind: paper_mlp has one scale for each whole step of a DDPM, which goes "
                f"with noise.path=vp and without model.prediction=edm, got {noise.path} and "
                f"{model.prediction}; use mlp"
            )
        return StepScaledMLP(
            dim,
            dim,
            widths=[model.width] * model.depth,
            num_steps=noise.num_train_timesteps,
            activation="softplus",
        )
    if noise.path == "ve" and model.prediction != "edm":
        raise UserError(
            "noise.path: the inputs of ve have no scale that an mlp could learn from; set "
            f"model.prediction=edm, which gives them one, got {model.prediction}"
        )
    network = TimeMLP(
        dim + (0 if table is None else table[1]),
        dim,
        width=model.width,
        depth=model.depth,
        embedding_dim=model.embedding_dim,
        num_fourier=model.num_fourier,
        time_range=1.0 if model.prediction == "edm" else 1000.0,
    )
    return network if table is None else ByVector(network, table)


def _prompted(
    model: ModelConfig, shape: tuple[int, ...], table: tuple[int, ...] | None
) -> nn.Module:
    from sft_rl.networks.prompted import BY_KIND  # here, since diffusers is slow to import

    if table is None or len(table) != 3:
        raise UserError(
            f"model.kind: {model.kind!r} is a network that pretrained.path reads; set it"
        )
    network = BY_KIND[model.kind](
        shape,
        model.unet,
        table=table,
        channels_last=model.channels_last,
        bfloat16=model.precision == "bfloat16",
    )
    return _checkpointed(network, model)


def _image_network(
    model: ModelConfig, shape: tuple[int, ...], table: tuple[int, ...] | None
) -> nn.Module:
    bfloat16 = model.precision == "bfloat16"
    if table is not None and model.kind != "unet":
        raise UserError(
            f"data.condition_columns: model.kind={model.kind} takes no vectors; use unet or own"
        )
    if model.kind == "edm":
        from sft_rl.networks.edm import EDMNetwork

        if not model.unet:
            raise UserError("model.kind: 'edm' is a network that pretrained.path reads; set it")
        return EDMNetwork(shape, model.unet)
    from sft_rl.networks.unet import DiT, UNet, VectorUNet  # here: diffusers is slow to import

    if model.kind == "dit":
        return _checkpointed(DiT(shape, model.unet, bfloat16=bfloat16), model)
    kind = UNet if table is None else partial(VectorUNet, table=table)
    unet = kind(shape, model.unet, channels_last=model.channels_last, bfloat16=bfloat16)
    return _checkpointed(unet, model)


def _checkpointed(network: UNet, model: ModelConfig) -> nn.Module:
    if model.gradient_checkpointing:
        network.unet.enable_gradient_checkpointing()
    return network


def critic_network(
    critic: CriticConfig,
    shape: tuple[int, ...],
    *,
    num_classes: int,
    num_conditions: int = 0,
    prompt_width: int = 0,
) -> nn.Module:
    """Build the critic's network, which maps (B, *shape) to scores (B, 1) or (B,).

    Labels are numbers of prompts, if their embeddings have a width.

    Raises:
        UserError: If the configured kind does not take samples of this shape.
    """
    if critic.factory is not None:
        if critic.regulariser == "spectral_norm":
            raise UserError(
                "critic.regulariser: spectral_norm is built into our own networks; in that of "
                "critic.factory put torch's parametrizations.spectral_norm, and set none here"
            )
        condition = one_condition(num_classes, num_conditions)
        return made_scorer("critic.factory", critic.factory, shape, *condition)
    if num_conditions and len(shape) == 1:
        return ByVector(_critic(critic, (shape[0] + num_conditions,), num_outputs=1))
    make = partial(_critic, critic, shape)
    return _by_label(make, num_classes, num_conditions, prompt_width)


def _by_label(
    make: Callable[..., nn.Module], num_classes: int, num_conditions: int, prompt_width: int
) -> nn.Module:
    """A network that looks at labels, if there are any, at their prompts, or at vectors."""
    if num_conditions:
        return ByProjection.of_vectors(make(num_outputs=1 + PROJECTED), num_conditions)
    if prompt_width:
        return ByPrompt(make(num_outputs=1 + PROJECTED), (num_classes, prompt_width))
    network = make(num_outputs=1 + num_classes)
    return ByLabel(network) if num_classes else network


def _critic(critic: CriticConfig, shape: tuple[int, ...], *, num_outputs: int) -> nn.Module:
    spectral_norm = critic.regulariser == "spectral_norm"
    if critic.kind != "mlp":
        from sft_rl.networks.conv import ConvTower, PaperConvCritic

        kind = ConvTower if critic.kind == "conv" else PaperConvCritic
        return kind(shape, width=critic.width, spectral_norm=spectral_norm, num_outputs=num_outputs)
    return PlainMLP(
        _points("critic.kind", shape, "conv or paper_conv"),
        num_outputs,
        width=critic.width,
        depth=critic.depth,
        activation=critic.activation,
        num_fourier=critic.num_fourier,
        spectral_norm=spectral_norm,
    )


def value_network(
    value: ValueConfig,
    shape: tuple[int, ...],
    *,
    num_steps: int,
    num_classes: int,
    num_conditions: int = 0,
    prompt_width: int = 0,
) -> nn.Module:
    """Build the baseline's network, which maps latents and step index to values (..., 1).

    Labels are numbers of prompts, if their embeddings have a width.

    Raises:
        UserError: If the configured kind does not take samples of this shape.
    """
    if value.factory is not None:
        steps = torch.zeros(2, dtype=torch.int64, device="cpu")
        condition = one_condition(num_classes, num_conditions)
        own = made_scorer("value.factory", value.factory, shape, steps, *condition)
        return OwnValue(own, shape)
    if num_conditions and len(shape) == 1:
        both = (shape[0] + num_conditions,)
        return ByVector(_value(value, both, num_steps=num_steps, num_outputs=1))
    make = partial(_value, value, shape, num_steps=num_steps)
    return _by_label(make, num_classes, num_conditions, prompt_width)


def _value(
    value: ValueConfig, shape: tuple[int, ...], *, num_steps: int, num_outputs: int
) -> nn.Module:
    if value.kind == "conv":
        from sft_rl.networks.conv import ConvTower

        return ConvTower(shape, width=value.width, num_steps=num_steps, num_outputs=num_outputs)
    if value.kind == "step_scaled":
        flat = StepScaledMLP(
            math.prod(shape),
            num_outputs,
            widths=value.widths or [value.width] * value.depth,
            num_steps=num_steps,
            activation="relu",
            output="scaled" if len(shape) == 1 else "xavier",
        )
        return flat if len(shape) == 1 else _Flattened(flat, event_ndim=len(shape))
    return TimeMLP(
        _points("value.kind", shape, "conv or step_scaled"),
        num_outputs,
        width=value.width,
        depth=value.depth,
        embedding_dim=32,
        num_fourier=value.num_fourier,
        time_range=num_steps,
    )


class _Flattened(nn.Module):
    """A network of points that takes images as rows of pixels."""

    def __init__(self, network: nn.Module, *, event_ndim: int) -> None:
        super().__init__()
        self.network = network
        self.event_ndim = event_ndim

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x.flatten(-self.event_ndim), t)  # type: ignore[no-any-return]


def _points(field: str, shape: tuple[int, ...], others: str) -> int:
    if len(shape) != 1:
        size = "x".join(str(n) for n in shape)
        raise UserError(f"{field}: an MLP takes points, the data are images {size}; use {others}")
    return shape[0]
