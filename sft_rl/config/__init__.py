"""Typed, frozen, validated configuration. The text under a field is its documentation."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from sft_rl.config.algorithms import HybridConfig, PathwiseConfig, PPOConfig, SFTPGConfig
from sft_rl.config.base import Section, Seed
from sft_rl.config.model import (
    LABELLED,
    DataConfig,
    ModelConfig,
    NoiseConfig,
    PretrainedConfig,
    PretrainingConfig,
)
from sft_rl.config.networks import CriticConfig, PolicyConfig, SamplerConfig, ValueConfig
from sft_rl.config.system import (
    DISTANCES,
    LearnerConfig,
    MetricsConfig,
    RayConfig,
    RolloutConfig,
    TrainingConfig,
)

__all__ = [
    "DISTANCES",
    "Config",
    "CriticConfig",
    "DataConfig",
    "HybridConfig",
    "LearnerConfig",
    "MetricsConfig",
    "ModelConfig",
    "NoiseConfig",
    "PPOConfig",
    "PathwiseConfig",
    "PolicyConfig",
    "PretrainedConfig",
    "PretrainingConfig",
    "RayConfig",
    "RolloutConfig",
    "SFTPGConfig",
    "SamplerConfig",
    "Section",
    "TrainingConfig",
    "ValueConfig",
]


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
    """`critic`, or a user's `module:function` from samples (B, *shape) in model units, and their
    labels (B,) if the model is conditional, to scores (B,), to be maximised instead."""
    data: DataConfig = DataConfig()
    """The data to generate."""
    noise: NoiseConfig = NoiseConfig()
    """The forward process."""
    model: ModelConfig = ModelConfig()
    """The network that predicts the noise."""
    pretrained: PretrainedConfig = PretrainedConfig()
    """A full-step model that is there already."""
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
    options: dict[str, Any] = Field(default_factory=dict)
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

    @property
    def distance(self) -> str:
        """Name of the distance that leads: it chooses the result and stands in summary.json."""
        if self.metrics.distance != "auto":
            return self.metrics.distance
        if self.metrics.inception_path is not None:
            return "fid"
        return "frechet" if self.data.name in LABELLED else "sliced_wasserstein"

    @property
    def uses_ray(self) -> bool:
        """Whether anything of a run is placed by Ray."""
        return self.rollout.num_workers > 0 or self.learner.launcher == "ray_train"
