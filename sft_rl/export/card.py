"""The model card of an exported sampler: what it is, what it came from, what is measured of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sft_rl
from sft_rl.config import DISTANCES
from sft_rl.policy import DenoisingPolicy
from sft_rl.pretrained.folders import is_on_hub
from sft_rl.runs.folder import RunFolder
from sft_rl.storage.checkpoint import parameters_sha256


def model_card(store: RunFolder, policy: DenoisingPolicy, *, usage: str) -> str:
    """Write the card, as the Hugging Face hub reads it.

    Args:
        store: The run.
        policy: Its sampler.
        usage: Lines of Python that load and call what is exported.
    """
    config, base = store.config, _base_model(store)
    is_images = config.samples.pixel_max is not None
    kind = "class-conditional" if policy.num_classes else "unconditional"
    tags = [f"{kind}-image-generation", "few-step"] if is_images else ["few-step"]
    if config.samples.prompts is not None:
        tags = ["text-to-image", "few-step"]
    library = "diffusers" if "diffusers" in usage or "few_step" in usage else "pytorch"
    on_hub = f"base_model: {base}\n" if is_on_hub(base) else ""
    title = f"A {policy.num_steps}-step sampler of {config.data.name}"
    rows = "\n".join(f"| {name} | {value} |" for name, value in _facts(store, policy).items())
    return f"""---
library_name: {library}
license: other
tags: [{", ".join(tags)}]
{on_hub}---

# {title}

Fine-tuned from a diffusion model of {config.noise.num_train_timesteps} steps by shortcut
fine-tuning (Fan and Lee, ICML 2023) with sft-rl {sft_rl.__version__}.

```python
{usage}
```

The number of steps is fixed.

| | |
|---|---|
| base model | {base} |
| licence | that of the base model and of the data; sft-rl adds none |
{rows}
"""


def _base_model(store: RunFolder) -> str:
    """Where the full-step model came from."""
    model, pretrained = store.config.model, store.config.pretrained
    if pretrained.path is not None:
        return pretrained.path
    if model.kind == "own":
        return model.factory or "a network that Python handed over"
    return f"{model.kind}, pretrained on the same data"


def _facts(store: RunFolder, policy: DenoisingPolicy) -> dict[str, Any]:
    """What the card tells of the run; a run that has not finished has no measured numbers."""
    config = store.config
    lora = config.pretrained.lora
    facts: dict[str, Any] = {
        **({} if lora is None else {"with the adapter": Path(lora).name}),
        "data": config.data.name,
        "algorithm": config.algorithm,
        "seed": config.seed,
        "function evaluations a sample": policy.num_steps,
        **_asked_for(store),
        "timesteps": ", ".join(f"{t:g}" for t in policy.timesteps.tolist()),
        "parameters of the sampler, SHA-256": parameters_sha256(policy),
    }
    file = store.path / "summary.json"
    if not file.exists():
        return facts
    summary, name = json.loads(file.read_text()), config.distance
    full_step = summary["full_step"]
    many = {f"{full_step['nfe']} steps": _told(full_step, name)} if "nfe" in full_step else {}
    return {
        **facts,
        "base model, SHA-256": summary["base_sha256"],
        f"{DISTANCES[name]}, {policy.num_steps} steps": _told(summary["final"], name),
        "before fine-tuning": _told(summary["before"], name),
        **many,
        "real against real": _told(full_step["noise_floors"], name),
        "protocol": ", ".join(f"{k} {v}" for k, v in summary["protocol"].items()),
    }


def _asked_for(store: RunFolder) -> dict[str, Any]:
    """What samples are conditional on, and what they are rewarded for."""
    config, facts = store.config, {}
    prompts = config.samples.prompts
    if prompts is not None:
        own = config.prompts.path or config.data.path or config.data.name
        facts["prompts"] = f"{len(prompts.texts)} of {own}, the first: {prompts.texts[0]}"
        facts["guidance, in the weights"] = f"{config.sampler.guidance_scale:g}"
    elif config.model.num_classes:
        facts["classes"] = str(config.model.num_classes)
    elif config.samples.conditions is not None:
        facts["conditional on"] = ", ".join(config.samples.conditions.names)
    if not config.reward.is_critic_alone:
        terms = [f"{config.reward.weight(t):g} x {t.use}" for t in config.reward.terms]
        facts["objective"] = " + ".join(terms)
    return facts


def _told(metrics: dict[str, Any], name: str) -> str:
    """A metric with its standard error, where they are known."""
    if name not in metrics:
        return "not measured"
    error = metrics.get(f"{name}_se")
    return f"{metrics[name]:.4f}" + ("" if error is None else f" ± {error:.4f}")
