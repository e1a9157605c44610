"""Typed, frozen, validated configuration. The text under a field is its documentation."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _decreasing(values: tuple[float, ...]) -> tuple[float, ...]:
    if not values or any(not math.isfinite(v) for v in values):
        raise ValueError("needs at least one finite number")
    if any(a <= b for a, b in pairwise(values)):
        raise ValueError("must decrease from step to step")
    return values


class Section(BaseModel):
    """Base of all configuration sections: frozen, and unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )


class DataConfig(Section):
    """The data to generate."""

    name: Literal["swiss_roll", "two_moons", "file"] = "swiss_roll"
    """Which data; setting `path` selects `file`."""
    path: str | None = None
    """A user's own points, one a row: .npy, .csv or .parquet."""
    num_points: Annotated[int, Field(ge=2)] = 200_000
    """Training points to draw from a synthetic source."""
    noise: NonNegative = 0.05
    """Noise of the synthetic sources, in scikit-learn's units."""
    test_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Share of a file's rows that is held out as the reference of the metrics."""
    standardise: bool = True
    """Shift to mean 0 and scale to std 1 for the model; undone on output."""
    seed: Seed = 0
    """Seed of synthetic points and of a file's split."""

    @model_validator(mode="before")
    @classmethod
    def _path_means_file(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("path") is not None:
            return {**values, "name": "file"}
        return values

    @model_validator(mode="after")
    def _file_needs_path(self) -> DataConfig:
        if self.name == "file" and self.path is None:
            raise ValueError("data.path: name 'file' needs a path to .npy, .csv or .parquet")
        return self


class NoiseConfig(Section):
    """The forward process the model was trained with."""

    schedule: Literal["linear", "sigmoid", "cosine"] = "linear"
    """Shape of the betas."""
    num_train_timesteps: Annotated[int, Field(ge=1, le=10_000)] = 1000
    """Number of training steps."""
    beta_start: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-4
    """First beta."""
    beta_end: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.02
    """Last beta."""


class ModelConfig(Section):
    """The network that predicts the noise."""

    kind: Literal["mlp", "paper_mlp"] = "mlp"
    """`mlp`: continuous time; `paper_mlp`: the paper's toy, one learned scale per step."""
    width: Count = 96
    """Units of a hidden layer."""
    depth: Count = 3
    """Number of hidden layers."""
    num_fourier: NonNegativeInt = 6
    """Fourier frequencies of the position, which resolve fine structure."""
    embedding_dim: Annotated[int, Field(ge=2, multiple_of=2)] = 64
    """Sinusoidal features of the timestep."""


class PretrainingConfig(Section):
    """Training of the full-step model, done once and cached."""

    num_iterations: Count = 2000
    """Optimiser steps."""
    batch_size: Annotated[int, Field(ge=2)] = 2048
    """Points a step."""
    num_times: Count = 128
    """Different timesteps a step; each is shared by batch_size / num_times points."""
    warmup: NonNegativeInt = 100
    """Steps over which the learning rate rises."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Optimiser."""
    learning_rate: Positive = 2e-3
    """Peak learning rate."""
    lr_decay: Literal["none", "linear", "cosine"] = "cosine"
    """How the learning rate falls to zero."""
    max_grad_norm: Positive = 1.0
    """Gradient clip."""
    ema_decay: Probability = 0.999
    """Decay of the averaged weights, which are kept; 0 keeps the last weights."""
    continuous_time: bool = True
    """Train on fractional timesteps."""
    seed: Seed = 0
    """Seed; separate from the run's, so that runs share a cached model."""


class SamplerConfig(Section):
    """The few-step sampler to start from."""

    num_steps: Annotated[int, Field(ge=1, le=1000)] = 10
    """Number of denoising steps T."""
    schedule: Literal[
        "subsampled", "fastdpm_var", "fastdpm_var_capped", "fastdpm_step", "timesteps", "own"
    ] = "subsampled"
    """`subsampled` training times, FastDPM's VAR (exact, or capped as in its published code) or
    STEP, a list of one's own (`timesteps`), or all of the model's `own` steps, sigma^2 = beta."""
    spacing: Literal["uniform", "quadratic", "trailing"] = "uniform"
    """How steps are spread over the times: both ends included, dense near the data, or evenly
    without the last time 0 (`subsampled` only)."""
    start_time: NonNegative | None = None
    """Where `subsampled` times start; the last training time if not given. A lower start is a
    shorter way to the data; the policy learns to make up for the noise it skips."""
    timesteps: Annotated[tuple[float, ...], AfterValidator(_decreasing)] | None = None
    """Own list of decreasing times; sets `schedule` and `num_steps`."""
    eta: Probability = 1.0
    """Stochasticity: 1 is DDPM, 0 is DDIM, which has no density for a policy gradient."""
    final_std: NonNegative = 0.01
    """Noise of the last step, in model units; a policy gradient needs it positive."""
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
        return self


class PolicyConfig(Section):
    """The policy's optimisation."""

    learning_rate: Positive = 1e-3
    """Peak learning rate of the network."""
    std_learning_rate: Positive = 5e-3
    """Peak learning rate of the learned standard deviations."""
    final_lr_factor: Probability = 0.0
    """Share of the learning rate that is left at the end, under `training.lr_decay`."""
    adam_betas: tuple[Probability, Probability] = (0.9, 0.99)
    """Adam's betas."""
    max_grad_norm: Positive = 1.0
    """Gradient clip."""
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    """Decay of the averaged policy (reached gradually), which is evaluated and saved; 0 turns
    averaging off."""
    log_prob_reduction: Literal["sum", "mean"] = "sum"
    """Reduction of log-probs over a sample's dimensions; `mean` is the paper's for images."""


class CriticConfig(Section):
    """The integral probability metric that gives the reward."""

    objective: str = "wasserstein"
    """`wasserstein`, `hinge` or `n2ce` (a network); `mmd` or `sliced_wasserstein` (none); or a
    user's `module:Class`, a subclass of Critic."""
    noise_ratio: Positive = 50.0
    """M of `n2ce`: how many generated samples it counts for each real one."""
    num_projections: Count = 64
    """Directions of `sliced_wasserstein`."""
    regulariser: Literal["gradient_penalty", "spectral_norm", "weight_clip", "none"] = (
        "gradient_penalty"
    )
    """Lipschitz control; the penalty is one-sided."""
    penalty_weight: NonNegative = 1.0
    """Weight of the gradient penalty."""
    penalty_target: NonNegative = 1.0
    """Norm up to which gradients are free; 0 is the zero-centred penalty."""
    drift_weight: NonNegative = 1e-3
    """Weight of the mean squared score, which keeps the scores near 0."""
    clip_value: Positive = 0.05
    """Bound of the weights under `weight_clip`."""
    width: Count = 128
    """Units of a hidden layer."""
    depth: Count = 3
    """Number of hidden layers."""
    num_fourier: NonNegativeInt = 3
    """Fourier frequencies 1, 2, 4 … of the position."""
    activation: Literal["silu", "relu", "leaky_relu"] = "relu"
    """Activation of the hidden layers."""
    learning_rate: Positive = 3e-3
    """Peak learning rate."""
    final_lr_factor: Probability = 1.0
    """Share of the learning rate that is left at the end, under `training.lr_decay`."""
    adam_betas: tuple[Probability, Probability] = (0.5, 0.9)
    """Adam's betas."""
    num_warmup_steps: NonNegativeInt = 50
    """Critic steps before the first policy step, on top of `n_critic`."""


class ValueConfig(Section):
    """The baseline V(s_k)."""

    kind: Literal["mlp", "step_scaled"] = "mlp"
    """`mlp`: embedding of the step; `step_scaled`: the paper's, one learned scale per step."""
    width: Count = 64
    """Units of a hidden layer."""
    depth: Count = 2
    """Number of hidden layers."""
    num_fourier: NonNegativeInt = 6
    """Fourier frequencies of the position."""
    learning_rate: Positive = 2e-3
    """Peak learning rate."""
    final_lr_factor: Probability = 0.0
    """Share of the learning rate that is left at the end, under `training.lr_decay`."""
    adam_betas: tuple[Probability, Probability] = (0.9, 0.99)
    """Adam's betas."""


class SFTPGConfig(Section):
    """Shortcut fine-tuning by policy gradient."""

    baseline: bool = True
    """Subtract V(s_k) from the score: SFT-PG (B) of the paper."""
    gae_lambda: Probability = 1.0
    """Weight of longer returns in the advantages; 1 is the paper's f(x_T) - V(s_k)."""
    normalise_advantages: Literal["none", "batch", "step"] = "batch"
    """Divide advantages by their spread over the batch, or shift and scale them step by step."""
    transitions_per_update: Count | None = None
    """Transitions drawn for a policy step; none takes the whole share of the batch."""


class PPOConfig(Section):
    """Proximal policy optimisation."""

    clip_range: Positive = 0.2
    """Bound epsilon of the ratio's deviation from 1."""
    num_epochs: Count = 2
    """Passes over an iteration's transitions."""
    num_minibatches: Count = 4
    """Policy steps in a pass."""
    gae_lambda: Probability = 0.95
    """Weight of longer returns in the advantages."""
    normalise_advantages: Literal["none", "batch", "step"] = "step"
    """Divide advantages by their spread over the batch, or shift and scale them step by step."""
    target_kl: Positive | None = 0.05
    """Approximate KL to the old policy, nats, at which an iteration's epochs stop."""
    kl_weight: NonNegative = 0.0
    """Weight of the KL to the pretrained policy, nats a step."""


class PathwiseConfig(Section):
    """Back-propagation through the chain."""

    num_last_steps: Count | None = None
    """How many of the last steps; none takes all."""
    chains_per_update: Count | None = None
    """Chains walked for a policy step; none takes one for every trajectory of its share."""
    checkpoint_activations: bool = False
    """Keep only latents in memory and compute each step again on the way back."""


class HybridConfig(Section):
    """Policy gradient on the first steps, back-propagation through the last."""

    num_last_steps: Count = 1
    """How many of the last steps are back-propagated."""
    gae_lambda: Probability = 1.0
    """Weight of longer returns in the advantages."""


class TrainingConfig(Section):
    """The outer loop."""

    num_iterations: Count = 300
    """Iterations: one rollout, `n_critic` critic steps and `n_generator` policy steps each."""
    batch_size: Annotated[int, Field(ge=2)] = 512
    """Trajectories for one critic step."""
    n_critic: Count = 2
    """Critic (and value) steps an iteration; each on trajectories of its own."""
    n_generator: Count = 1
    """Policy steps an iteration."""
    lr_decay: Literal["none", "linear", "cosine"] = "linear"
    """How learning rates fall over the run, to `final_lr_factor` of their peak."""
    eval_every: Count = 25
    """Iterations between two evaluations against validation data."""
    select_best: bool = True
    """The result is the averaged policy that did best on validation data; else the last one."""
    checkpoint_every: Count = 50
    """Iterations between two checkpoints."""
    keep_checkpoints: Count = 2
    """How many of the newest checkpoints are kept, besides the best."""


class RolloutConfig(Section):
    """Who draws trajectories."""

    num_workers: Annotated[int, Field(ge=0)] = 2
    """Ray rollout actors; 0 draws in the learner's process, without Ray."""
    num_cpus_per_worker: NonNegative = 1.0
    """Logical CPUs of a worker, may be fractional."""
    num_gpus_per_worker: NonNegative = 0.0
    """GPUs of a worker, may be fractional."""
    placement: Literal["spread", "pack"] = "spread"
    """`spread`: workers on as many nodes as there are; `pack`: on few, the learner's first."""
    shards_per_batch: Count = 1
    """Parts into which the trajectories of a critic step are cut; the unit a worker draws."""
    num_threads: Count = 1
    """CPU threads a worker computes with; a result depends on it in the last bits."""
    timeout_s: Positive = 300.0
    """Seconds without an answer after which a busy worker counts as hung and is replaced."""


class RayConfig(Section):
    """The Ray cluster."""

    address: str | None = None
    """Cluster to join; none starts a Ray on this machine, on loopback with a token."""


class LearnerConfig(Section):
    """Where the networks are updated."""

    num_threads: Count = 1
    """CPU threads the learner computes with; a result depends on it in the last bits."""
    num_cpus: NonNegative = 1.0
    """Logical CPUs of the learner where Ray places it, as in `sft-rl tune`; may be fractional."""
    num_gpus: NonNegative = 0.0
    """GPUs of the learner where Ray places it; may be fractional."""


class MetricsConfig(Section):
    """How samples are measured, always against held-out real data."""

    num_samples: Annotated[int, Field(ge=10)] = 10_000
    """Samples on each side of the sliced Wasserstein distance."""
    num_projections: Count = 100
    """Random directions of the sliced Wasserstein distance."""
    num_exact: Annotated[int, Field(ge=10)] = 2_000
    """Samples on each side of the exact distance and the MMD."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of directions, reference draw and sampling noise."""


class Config(Section):
    """Everything that determines a run."""

    preset: str = "custom"
    """Name of the preset it started from."""
    description: str = ""
    """One line for `sft-rl presets`."""
    seed: Seed = 0
    """Seed of the run."""
    device: str = "auto"
    """Learner's device: `auto`, `cpu`, `cuda` or `cuda:N`."""
    algorithm: str = "sft_pg"
    """Learning algorithm: sft_pg, ppo, pathwise, hybrid, or a user's `module:Class`."""
    reward: str = "critic"
    """`critic`, or a user's `module:function` from samples (B, *shape) in model units to scores
    (B,), to be maximised instead."""
    data: DataConfig = DataConfig()
    """The data to generate."""
    noise: NoiseConfig = NoiseConfig()
    """The forward process."""
    model: ModelConfig = ModelConfig()
    """The network that predicts the noise."""
    pretraining: PretrainingConfig = PretrainingConfig()
    """Training of the full-step model."""
    sampler: SamplerConfig = SamplerConfig()
    """The few-step sampler."""
    policy: PolicyConfig = PolicyConfig()
    """The policy's optimisation."""
    critic: CriticConfig = CriticConfig()
    """The critic."""
    value: ValueConfig = ValueConfig()
    """The value baseline."""
    sft_pg: SFTPGConfig = SFTPGConfig()
    """Options of `algorithm=sft_pg`."""
    ppo: PPOConfig = PPOConfig()
    """Options of `algorithm=ppo`."""
    pathwise: PathwiseConfig = PathwiseConfig()
    """Options of `algorithm=pathwise`."""
    hybrid: HybridConfig = HybridConfig()
    """Options of `algorithm=hybrid`."""
    options: dict[str, Any] = {}
    """Options of a user's own algorithm, critic or reward, for them to read."""
    training: TrainingConfig = TrainingConfig()
    """The outer loop."""
    rollout: RolloutConfig = RolloutConfig()
    """Who draws trajectories."""
    learner: LearnerConfig = LearnerConfig()
    """Where the networks are updated."""
    ray: RayConfig = RayConfig()
    """The Ray cluster."""
    metrics: MetricsConfig = MetricsConfig()
    """How samples are measured."""
