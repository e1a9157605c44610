"""The end of a run: its result measured against held-out data, its pictures, its summary."""

from __future__ import annotations

import time

from sft_rl.config import DISTANCES
from sft_rl.jobs.clock import Clock
from sft_rl.jobs.report import write_by_prompt
from sft_rl.learning.learner import Learner
from sft_rl.learning.validation import Validation
from sft_rl.metrics.by_class import by_class, over_classes
from sft_rl.metrics.distances import Array
from sft_rl.metrics.evaluation import Evaluator, denoising_path
from sft_rl.networks.lora import base_of
from sft_rl.policy import DenoisingPolicy
from sft_rl.pretrained.full_step import FullStep, Summary
from sft_rl.runs.folder import RunFolder
from sft_rl.seeding import num_threads
from sft_rl.storage.checkpoint import parameters_sha256
from sft_rl.storage.files import saving
from sft_rl.types import Metrics


def conclude(
    learner: Learner,
    full_step: FullStep,
    *,
    before: Array,
    store: RunFolder,
    validation: Validation,
    clock: Clock,
) -> Summary:
    """Measure the result against held-out data, draw the pictures, write the summary."""
    evaluator, config, policy = validation.evaluator, store.config, learner.result
    data = evaluator.data
    with clock.phase("last evaluation"), num_threads(config.learner.num_threads):
        begun = time.perf_counter()
        after = evaluator.samples(policy)
        seconds_per_sample = (time.perf_counter() - begun) / len(after)
        found, found_before = evaluator.measured(after), evaluator.measured(before)
        final, initial = (
            one.numbers | one.less(full_step.estimates, "full_step")
            for one in (found, found_before)
        )
        final |= found.less(found_before.estimates, "before")
        initial |= validation.reported(learner.networks.pretrained, initial[evaluator.name])
        final |= validation.reported(policy, final[evaluator.name])
        classes = _by_class(learner, validation)
        if (prompts := data.units.samples.prompts) is not None:
            initial |= over_classes(classes["before"])
            final |= over_classes(classes["final"])
            write_by_prompt(store.path / "prompts.csv", prompts.texts, classes)
    if config.training.plots:
        with clock.phase("plots"), saving(store.path / "plots"):
            _write_plots(store, evaluator, policy, before, after, full_step)
    measured = {"initial": initial, "final": final, "full_step": full_step.numbers}
    summary = {
        "preset": config.preset,
        "algorithm": config.algorithm,
        "seed": config.seed,
        "num_steps": config.sampler.num_steps,
        "data": data.description,
        **{
            f"{name}_{when}": metrics[name]
            for name in DISTANCES
            for when, metrics in measured.items()
            if name in metrics
        },
        "noise_floor": full_step.numbers["noise_floor"],
        "before": initial,
        "final": final,
        "full_step": full_step.numbers,
        **({"classes": classes} if classes["final"] and prompts is None else {}),
        "protocol": {**evaluator.protocol, "nfe": policy.num_steps},
        "seconds_per_sample": seconds_per_sample,
        "wall_seconds": clock.total(),
        "base_sha256": parameters_sha256(base_of(learner.networks.pretrained.network)),
        "policy_sha256": parameters_sha256(policy),
    }
    store.write_summary(summary)
    return summary


def _by_class(learner: Learner, validation: Validation) -> dict[str, list[Metrics]]:
    """What is measured of each class alone, before and at last."""
    objective = validation.objective
    rewards = objective.looked_at if objective.rewards else None
    policies = {"before": learner.networks.pretrained, "final": learner.result}
    return {
        name: by_class(validation.evaluator, policy, rewards) for name, policy in policies.items()
    }


def _write_plots(
    store: RunFolder,
    evaluator: Evaluator,
    policy: DenoisingPolicy,
    before: Array,
    after: Array,
    full_step: FullStep,
) -> None:
    from sft_rl.jobs.plots import Samples, write_plots  # here: matplotlib is slow to import

    data = evaluator.data
    path = denoising_path(policy, data, num=40, seed=evaluator.config.seed)
    has_prompts = data.units.samples.prompts is not None
    prompts = evaluator.prompts(policy, len(after)) if has_prompts else ()
    samples = Samples(evaluator.reference, before, after, path, full_step.samples, prompts)
    write_plots(store.path, samples, data.units)
