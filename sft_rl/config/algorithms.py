"""Options of the algorithms."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sft_rl.config.base import Beta, Count, NonNegative, Positive, Probability, Section


class PolicyGradientConfig(Section):
    """What the algorithms that take log-probs share: how good an action was."""

    baseline: Literal["look_ahead", "group", "value", "none"] = "look_ahead"
    """What is subtracted from the score f(x_T): `look_ahead`, the critic's score of the final
    sample that the policy expects at the state, scaled by regression over the batch; `group`, the
    mean score of the others of its group (`rollout.group_size`), before its branch that of other
    groups; `value`, a trained V(s_k), which is SFT-PG (B) of the paper; or nothing, SFT-PG."""
    gae_lambda: Probability = 1.0
    """Weight of longer returns in the advantages; 1 is the paper's f(x_T) - b(s_k)."""


class SFTPGConfig(PolicyGradientConfig):
    """Shortcut fine-tuning by policy gradient."""

    normalise_advantages: Literal["none", "batch", "step"] = "batch"
    """Divide advantages by their spread over the batch, or shift and scale them step by step."""
    transitions_per_update: Count | None = None
    """Transitions drawn for a policy step; none takes the whole share of the batch."""


class PPOConfig(PolicyGradientConfig):
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


class HybridConfig(PolicyGradientConfig):
    """Policy gradient on the first steps, back-propagation through the last."""

    num_last_steps: Count = 1
    """How many of the last steps are back-propagated."""


class GRPOConfig(Section):
    """Group-relative policy optimisation, by branches."""

    scale: Literal["group", "batch", "none"] = "batch"
    """What advantages are divided by: the spread of scores within each group, within all groups
    together, or nothing."""
    window: Count | None = 1
    """Steps from the branch on that learn; none takes all that are left."""
    window_eta: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """`sampler.eta` of those steps while trajectories are drawn, wherever the branch is; all other
    steps, and the sampler that is measured and kept, have `sampler.eta` itself, which may be 0.
    None draws by `sampler.eta` alone."""
    clip_range: Positive = 0.2
    """Bound epsilon of the ratio's deviation from 1."""
    trust_region: Positive | None = None
    """In place of the clip: KL to the old policy, nats a dimension, beyond which a term that still
    moves away is dropped."""
    num_epochs: Count = 1
    """Passes over an iteration's transitions."""
    num_minibatches: Count = 1
    """Policy steps in a pass."""
    kl_weight: NonNegative = 0.0
    """Weight of the KL to the pretrained policy, nats a step."""


class NFTConfig(Section):
    """Fine-tuning by the forward process, towards good samples and away from bad ones."""

    beta: Positive = 1.0
    """How far the two implicit predictions go from the old one, in changes of the network."""
    spread: Positive = 1.0
    """Distance from the mean score, in standard deviations, at which a sample counts as entirely
    good or bad; the mean is its group's if there are groups."""
    levels_per_sample: Count = 2
    """Steps to whose noise level each sample is brought for a policy step."""
    old_decay: Beta = 0.9
    """Decay, an iteration, of the old policy, which draws: a moving average of the policy."""
    kl_weight: NonNegative = 0.0
    """Weight of the mean square distance of the prediction to the pretrained policy's."""
