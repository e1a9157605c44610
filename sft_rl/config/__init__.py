"""Typed, frozen, validated configuration. The text under a field is its documentation."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any, Self

from pydantic import Field, model_validator

from sft_rl.config.algorithms import (
    GRPOConfig,
    HybridConfig,
    NFTConfig,
    PathwiseConfig,
    PolicyGradientConfig,
    PPOConfig,
    SFTPGConfig,
)
from sft_rl.config.base import Count, NonNegativeInt, Section, Seed
from sft_rl.config.model import (
    OF_PROMPTS,
    DataConfig,
    ModelConfig,
    NoiseConfig,
)
from sft_rl.config.networks import (
    CriticConfig,
    LoraConfig,
    PolicyConfig,
    SamplerConfig,
    ValueConfig,
)
from sft_rl.config.pretraining import PretrainedConfig, PretrainingConfig
from sft_rl.config.prompts import Latents, Prompts, PromptsConfig
from sft_rl.config.rewards import CRITIC, OWN, RewardConfig, TermConfig
from sft_rl.config.system import (
    DISTANCES,
    OF_FEATURES,
    WATCHED_OF_POINTS,
    LearnerConfig,
    MetricsConfig,
    RayConfig,
    RolloutConfig,
    TrainingConfig,
)

__all__ = [
    "CRITIC",
    "DISTANCES",
    "OF_FEATURES",
    "OF_PROMPTS",
    "OWN",
    "WATCHED_OF_POINTS",
    "Conditions",
    "Config",
    "CriticConfig",
    "DataConfig",
    "GRPOConfig",
    "HybridConfig",
    "Latents",
    "LearnerConfig",
    "LoraConfig",
    "MetricsConfig",
    "ModelConfig",
    "NFTConfig",
    "NoiseConfig",
    "PPOConfig",
    "PathwiseConfig",
    "PolicyConfig",
    "PretrainedConfig",
    "PretrainingConfig",
    "Prompts",
    "PromptsConfig",
    "RayConfig",
    "ResolvedConfig",
    "RewardConfig",
    "RolloutConfig",
    "PolicyGradientConfig",
    "SFTPGConfig",
    "SamplerConfig",
    "Samples",
    "Section",
    "TermConfig",
    "TrainingConfig",
    "ValueConfig",
]


class Conditions(Section):
    """Vectors that a model is conditional on, looked up in the data."""

    names: tuple[str, ...]
    """Of their columns."""
    shift: tuple[float, ...]
    """What is added to vectors in model units after scaling, one number a column."""
    scale: tuple[float, ...]
    """What vectors in model units are multiplied by, one number a column."""
    num_rows: Count
    """How many vectors of training samples a model keeps, to draw from where none is given."""


class Samples(Section):
    """What samples are, looked up in the data: enough to draw some where the data are not."""

    shape: tuple[Count, ...]
    """Shape of one sample: (dimensions,) of points, (channels, height, width) of images."""
    shift: tuple[float, ...]
    """What is added to samples in model units after scaling; one number, or one a dimension."""
    scale: tuple[float, ...]
    """What samples in model units are multiplied by."""
    pixel_max: Count | None = None
    """Value of a white pixel of images, whose values are whole numbers; none for points."""
    num_classes: NonNegativeInt = 0
    """Number of classes of the data's labels; 0 if they have none."""
    conditions: Conditions | None = None
    """Vectors that points are conditional on, if they are."""
    latents: Latents | None = None
    """How samples are latents of pictures, if they are; the shape is theirs."""
    prompts: Prompts | None = None
    """Prompts that pictures are conditional on, by their number, if they are."""
    fingerprint: str
    """Hash of the training data."""

    @property
    def num_conditions(self) -> int:
        """Numbers of the vector that a point is conditional on; 0 for none."""
        return 0 if self.conditions is None else len(self.conditions.names)

    @property
    def prompt_width(self) -> int:
        """Numbers of a token of the prompts' embeddings; 0 without prompts."""
        return 0 if self.prompts is None else self.prompts.width

    @property
    def table(self) -> tuple[int, ...] | None:
        """Shape of the vectors, or of the prompts with the empty one, that a model keeps."""
        if self.prompts is not None:
            return len(self.prompts.texts) + 1, self.prompts.num_tokens, self.prompts.width
        known = self.conditions
        return None if known is None else (known.num_rows, len(known.names))


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
    """Learning algorithm: sft_pg, ppo, pathwise, hybrid, grpo, nft, or a user's `module:Class`."""
    reward: RewardConfig = RewardConfig()
    """What is maximised; `reward=module:function` is short for a reward alone, without a critic."""
    data: DataConfig = DataConfig()
    """The data to generate."""
    prompts: PromptsConfig = PromptsConfig()
    """What a text-to-image pipeline is prompted with."""
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
    grpo: GRPOConfig = GRPOConfig()
    """Options of `algorithm=grpo`."""
    nft: NFTConfig = NFTConfig()
    """Options of `algorithm=nft`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options that a user's own algorithm, critic or reward declares as its `Options`."""
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

    @model_validator(mode="after")
    def _vectors_are_known(self) -> Self:
        if self.data.condition_columns is not None and self.pretrained.path is not None:
            raise ValueError(
                "data.condition_columns: a model of pretrained.path takes no vectors; leave out one"
            )
        return self

    @cached_property
    def own_keys(self) -> tuple[str, ...]:
        """Dotted keys that the user set beside a preset or a file, as far as is known."""
        return ()

    def with_own_keys(self, keys: Iterable[str]) -> Self:
        """Remember which keys the user set; that changes no setting."""
        copy = self.model_copy()
        copy.__dict__["own_keys"] = tuple(keys)
        return copy

    @property
    def distance(self) -> str:
        """Name of the metric that leads: it chooses the result and stands in summary.json."""
        return self.metrics.leading(self.data, is_images=self._is_images)

    @property
    def watched(self) -> tuple[str, ...]:
        """Names of the metrics that evaluations measure, the leading one among them."""
        if not self._is_images:
            return WATCHED_OF_POINTS
        errors = (f"{self.distance}_se",) if self.distance in OF_FEATURES else ()
        return (self.distance, *errors)

    @property
    def _is_images(self) -> bool:
        return self.data.is_images

    @property
    def uses_ray(self) -> bool:
        """Whether anything of a run is placed by Ray."""
        return (
            self.rollout.num_workers > 0
            or self.learner.launcher == "ray_train"
            or any(term.uses_ray for term in self.reward.terms)
        )


class ResolvedConfig(Config):
    """A configuration in which everything is looked up and checked; a run keeps it.

    Paths are absolute, a pretrained model's own settings and its hash are filled in, options of
    the user's own classes are typed. ``sft_rl.runs.resolve`` makes it; nothing resolves again.
    """

    samples: Samples
    """What samples of the data are."""
    run_id: str = ""
    """What tells this run from every other; given when its folder is made."""

    @property
    def _is_images(self) -> bool:
        return self.samples.pixel_max is not None  # so are those that Python handed over
