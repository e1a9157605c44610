"""Settings of the networks that learn: the few-step policy, the critic and the value."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from sft_rl.config.base import (
    Beta,
    Count,
    NonNegative,
    NonNegativeInt,
    Positive,
    Probability,
    Reference,
    Section,
)


def _decreasing(values: tuple[float, ...]) -> tuple[float, ...]:
    if not values or any(not math.isfinite(v) for v in values):
        raise ValueError("needs at least one finite number")
    if any(a <= b for a, b in pairwise(values)):
        raise ValueError("must decrease from step to step")
    return values


def _shares(value: Any) -> Any:
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, bool) or not isinstance(one, int | float) or not 0.0 <= one <= 1.0:
            raise ValueError("must be 0 to 1, or a list of such numbers")
    return value


class SamplerConfig(Section):
    """The few-step sampler to start from."""

    num_steps: Annotated[int, Field(ge=1, le=1000)] = 10
    """Number of denoising steps T."""
    schedule: Literal[
        "subsampled", "fastdpm_var", "fastdpm_var_capped", "fastdpm_step", "timesteps", "own"
    ] = "subsampled"
    """`subsampled` training times, FastDPM's VAR (exact, or capped as in its published code) or
    STEP, a list of one's own (`timesteps`), or all of the model's `own` steps, sigma^2 = beta."""
    spacing: Literal["uniform", "quadratic", "trailing", "karras"] = "uniform"
    """How steps are spread over the times: both ends included, dense near the data, evenly
    without the last time 0, or as EDM's, evenly in the seventh root of noise by data (the last two
    `subsampled` only)."""
    start_time: NonNegative | None = None
    """Where `subsampled` times start; the last training time if not given. A lower start is a
    shorter way to the data; the policy learns to make up for the noise it skips."""
    timesteps: Annotated[tuple[float, ...], AfterValidator(_decreasing)] | None = None
    """Own list of decreasing times; sets `schedule` and `num_steps`."""
    eta: Annotated[float | tuple[float, ...], BeforeValidator(_shares)] = 1.0
    """Stochasticity: 1 is DDPM, 0 is DDIM, which has no density for a policy gradient; or a list,
    one for each step (that of the last is `final_std`'s)."""
    stochasticity: Literal["posterior", "cps", "flow_sde"] = "posterior"
    """What `eta` is a share of: the `posterior`'s standard deviation; the noise left after the
    step, by sin(eta pi / 2) (Flow-CPS, and EDM's churn); or s = eta sqrt(sigma / (1 - sigma)) of
    the flow's SDE (Flow-GRPO)."""
    final_std: NonNegative = 0.01
    """Noise of the last step, in model units; a policy gradient needs it positive."""
    guidance_scale: Positive = 1.0
    """Classifier-free guidance w of a model with a null class, w F(c) + (1 - w) F(none): the
    two calls are fitted by one network, from which all starts. 1 is no guidance."""
    learn_std: bool = False
    """Learn one standard deviation per step (the last stays as it is)."""

    @model_validator(mode="before")
    @classmethod
    def _own_list(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("timesteps") is not None:
            times = values["timesteps"]
            num = len(times) if isinstance(times, list | tuple) else 1
            return {**values, "schedule": "timesteps", "num_steps": num}
        return values

    @model_validator(mode="after")
    def _list_is_there(self) -> SamplerConfig:
        if self.schedule == "timesteps" and self.timesteps is None:
            raise ValueError("sampler.timesteps: schedule 'timesteps' needs a list of times")
        if isinstance(self.eta, tuple) and len(self.eta) != self.num_steps:
            raise ValueError(
                f"sampler.eta: a list has one number for each of sampler.num_steps="
                f"{self.num_steps}, got {len(self.eta)}"
            )
        return self


class LoraConfig(Section):
    """A low-rank adapter (LoRA; Hu et al., 2021), trained in place of the network's own weights."""

    rank: Count | None = None
    """Rank r of what is added to a layer's weight, alpha / r B A; none trains all weights."""
    alpha: Positive | None = None
    """Its size; the rank if not given."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Layers that get one, by their names or the ends of them, as peft takes them; none takes the
    projections of attention, to_q, to_k, to_v and to_out.0 (of Stable Diffusion 3 those of tokens,
    too), or where there are none of these all linear layers and convolutions."""

    @model_validator(mode="after")
    def _has_a_rank(self) -> LoraConfig:
        for name in ("alpha", "targets"):
            if self.rank is None and getattr(self, name) is not None:
                raise ValueError(
                    f"policy.lora.{name}: goes with policy.lora.rank, got {getattr(self, name)} "
                    "without one"
                )
        return self


class PolicyConfig(Section):
    """The policy's optimisation."""

    learning_rate: Positive = 1e-3
    """Peak learning rate of the network."""
    std_learning_rate: Positive = 5e-3
    """Peak learning rate of the learned standard deviations."""
    final_lr_factor: Probability = 0.0
    """Share of the learning rate that is left at the end, under `training.lr_decay`."""
    adam_betas: tuple[Beta, Beta] = (0.9, 0.99)
    """Adam's betas."""
    max_grad_norm: Positive = 1.0
    """Gradient clip."""
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    """Highest decay of the averaged policy, which is evaluated and saved; 0 turns averaging off."""
    ema_ramp: Positive = 9.0
    """The average holds about the last 1/9 of the updates so far, by default, until that is more
    than 1 / (1 - `ema_decay`) of them; a smaller number widens it: 1 weighs all alike."""
    log_prob_reduction: Literal["sum", "mean"] = "sum"
    """Reduction of log-probs over a sample's dimensions; `mean` is the paper's for images."""
    lora: LoraConfig = LoraConfig()
    """Train a low-rank adapter alone."""


class CriticConfig(Section):
    """The integral probability metric that gives the reward."""

    objective: str = "wasserstein"
    """`wasserstein`, `hinge`, `n2ce` or `relativistic`, in pairs (a network); `mmd` or
    `sliced_wasserstein` (none); or a user's `module:Class`, a subclass of Critic."""
    space: Literal["latents", "pixels"] = "latents"
    """What it sees of a pipeline of latents: these, or the pictures that the autoencoder makes of
    them, for which the gradient goes through that."""
    noise_ratio: Positive = 50.0
    """M of `n2ce`: how many generated samples it counts for each real one."""
    num_projections: Count = 64
    """Directions of `sliced_wasserstein`."""
    kind: Literal["mlp", "conv", "paper_conv"] = "mlp"
    """Network: `mlp` for points; for images `conv`, residual and down to 4x4 pixels or less, or
    `paper_conv`, the four 4x4 convolutions of the paper's code, from 32x32 pixels."""
    num_networks: Count = 1
    """Critics that start from different weights and learn apart; their mean scores."""
    factory: Reference | None = None
    """A user's `module:function` that returns the network of one's own, called as `network(x[,
    labels])`, in place of `kind`; returns scores (B,) or (B, 1)."""
    regulariser: Literal[
        "gradient_penalty", "r1", "r1_r2", "spectral_norm", "weight_clip", "none"
    ] = "gradient_penalty"
    """Lipschitz control; the penalty is one-sided. `r1` is zero-centred, at real samples, `r1_r2`
    at generated ones, too.
    `spectral_norm` divides each layer's weights by their largest singular value, of a convolution
    that of its kernel as a matrix: the convolution itself may stretch an image by more than 1, a
    3x3 one by up to 3."""
    penalty_weight: NonNegative = 1.0
    """Weight of the gradient penalty, of R1 or of R1 and R2."""
    penalty_every: Count = 1
    """Critic steps for one penalty, which then weighs as much more: lazy regularisation."""
    penalty_target: NonNegative = 1.0
    """Norm up to which gradients are free; 0 is the zero-centred penalty."""
    drift_weight: NonNegative = 1e-3
    """Weight of the mean squared score, which keeps the scores near 0."""
    clip_value: Positive = 0.05
    """Bound of the weights under `weight_clip`."""
    width: Count = 128
    """Units of a hidden layer; channels of the first convolution."""
    depth: Count = 3
    """Number of hidden layers of an `mlp`."""
    num_fourier: NonNegativeInt = 3
    """Fourier frequencies 1, 2, 4 … of the position."""
    activation: Literal["silu", "relu", "leaky_relu"] = "relu"
    """Activation of the hidden layers."""
    learning_rate: Positive = 3e-3
    """Peak learning rate."""
    final_lr_factor: Probability = 1.0
    """Share of the learning rate that is left at the end, under `training.lr_decay`."""
    adam_betas: tuple[Beta, Beta] = (0.5, 0.9)
    """Adam's betas."""
    num_warmup_steps: NonNegativeInt = 50
    """Critic steps before the first policy step, on top of `n_critic`."""


class ValueConfig(Section):
    """The baseline V(s_k)."""

    kind: Literal["mlp", "step_scaled", "conv"] = "mlp"
    """`mlp`: embedding of the step; `step_scaled`: the paper's, one learned scale per step;
    `conv`: convolutions shifted by an embedding of the step, for images."""
    factory: Reference | None = None
    """A user's `module:function` that returns the network of one's own, called as `network(x,
    step_index[, labels])`, in place of `kind`; returns values (N,) or (N, 1)."""
    width: Count = 64
    """Units of a hidden layer; channels of the first convolution."""
    depth: Count = 2
    """Number of hidden layers of an `mlp` or `step_scaled`."""
    widths: tuple[Count, ...] | None = None
    """Units of each hidden layer of `step_scaled`, in place of `width` and `depth`."""
    num_fourier: NonNegativeInt = 6
    """Fourier frequencies of the position."""
    learning_rate: Positive = 2e-3
    """Peak learning rate."""
    final_lr_factor: Probability = 0.0
    """Share of the learning rate that is left at the end, under `training.lr_decay`."""
    adam_betas: tuple[Beta, Beta] = (0.9, 0.99)
    """Adam's betas."""
