"""Which settings a resumed run may have others of, and which would give another result."""

from __future__ import annotations

from typing import Any

FREE_TO_CHANGE = (
    "data.path",  # what is there is compared by its hash, and so for the next
    "description",
    "learner.labels",
    "learner.launcher",
    "learner.max_failures",
    "learner.callbacks",
    "learner.num_cpus",
    "learner.num_gpus",
    "learner.strategy",
    "metrics.clip_path",
    "metrics.dinov2_path",
    "metrics.inception_path",
    "metrics.reference_stats",
    "model.channels_last",  # rounds otherwise, in the last bits
    "pretrained.lora",
    "pretrained.path",
    "pretrained.variant",
    "ray.",
    "reward.terms.labels",
    "reward.terms.num_cpus_per_scorer",
    "reward.terms.num_gpus_per_scorer",
    "reward.terms.num_scorers",
    "reward.terms.timeout_s",
    "reward.terms.token_variable",
    "rollout.labels",
    "rollout.num_workers",
    "rollout.num_cpus_per_worker",
    "rollout.num_gpus_per_worker",
    "rollout.placement",
    "rollout.timeout_s",
    "run_id",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.plots",
)
"""Settings that a resumed run may have others of: they change no result beyond its rounding."""


def changes(
    before: dict[str, Any], after: dict[str, Any], prefix: str = "", *, fewer: bool = False
) -> list[str]:
    """List the settings in which a resumed run differs and must not.

    Args:
        before: Settings of the run.
        after: Settings that it would go on with.
        prefix: Of their names.
        fewer: Whether there may be fewer iterations, too, not only more.
    """
    changed: list[str] = []
    for name, old in before.items():
        key, new = prefix + name, after[name]
        if key == "samples":
            changed += [] if old == new else ["the data are others"]
        elif isinstance(old, dict) and prefix == "" and isinstance(new, dict):
            changed += changes(old, new, f"{key}.", fewer=fewer)
        elif key == "reward.terms" and [t["name"] for t in old] == [t["name"] for t in new]:
            for term, other in zip(old, new, strict=True):
                changed += changes(term, other, f"{key}.")
        elif old != new and not key.startswith(FREE_TO_CHANGE):
            more = key == "training.num_iterations" and (fewer or new > old)
            if not more:
                changed.append(f"{key} was {old!r}, now {new!r}")
    return changed
