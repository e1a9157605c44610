"""The networks: noise prediction, critic and value, built from the configuration.

Every time-conditioned network is called as ``network(x, t)`` with x of shape (..., *shape) and t
broadcastable to (...): the whole (T, B) grid of an update goes through in one call, with t of
shape (T, 1).
"""

from __future__ import annotations

from torch import nn

from sft_rl.config import Config
from sft_rl.networks.mlp import PlainMLP, StepScaledMLP, TimeMLP


def noise_network(config: Config, shape: tuple[int, ...]) -> nn.Module:
    """Build the network that predicts the noise of latents of one shape."""
    dim = _flat(shape)
    model = config.model
    if model.kind == "paper_mlp":
        return StepScaledMLP(
            dim,
            dim,
            width=model.width,
            depth=model.depth,
            num_steps=config.noise.num_train_timesteps,
            activation="softplus",
        )
    return TimeMLP(
        dim,
        dim,
        width=model.width,
        depth=model.depth,
        embedding_dim=model.embedding_dim,
        num_fourier=model.num_fourier,
    )


def critic_network(config: Config, shape: tuple[int, ...]) -> nn.Module:
    """Build the critic's network, which maps (B, *shape) to scores (B, 1)."""
    critic = config.critic
    return PlainMLP(
        _flat(shape),
        1,
        width=critic.width,
        depth=critic.depth,
        activation=critic.activation,
        num_fourier=critic.num_fourier,
        spectral_norm=critic.regulariser == "spectral_norm",
    )


def value_network(config: Config, shape: tuple[int, ...]) -> nn.Module:
    """Build the baseline's network, which maps latents and step index to values (..., 1)."""
    value, dim = config.value, _flat(shape)
    if value.kind == "step_scaled":
        return StepScaledMLP(
            dim,
            1,
            width=value.width,
            depth=value.depth,
            num_steps=config.sampler.num_steps,
            activation="relu",
        )
    return TimeMLP(
        dim,
        1,
        width=value.width,
        depth=value.depth,
        embedding_dim=32,
        num_fourier=value.num_fourier,
        time_range=config.sampler.num_steps,
    )


def _flat(shape: tuple[int, ...]) -> int:
    assert len(shape) == 1, f"an MLP takes points, got samples of shape {shape}"
    return shape[0]
