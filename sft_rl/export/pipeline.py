"""A run's sampler as a pipeline of diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import UNet2DModel

import sft_rl
from sft_rl.config import DISTANCES
from sft_rl.errors import UserError
from sft_rl.export import few_step, few_step_pipeline
from sft_rl.export.few_step import FewStepScheduler
from sft_rl.export.few_step_pipeline import FewStepPipeline
from sft_rl.networks.own import OwnNetwork
from sft_rl.networks.unet import UNet
from sft_rl.policy import DenoisingPolicy
from sft_rl.runs.folder import RunFolder
from sft_rl.storage.checkpoint import parameters_sha256

SCHEDULER_CODE = Path(few_step.__file__)
PIPELINE_CODE = Path(few_step_pipeline.__file__)


def export(run: Path, out: Path, *, with_code: bool) -> None:
    """Write a run's sampler as a folder that diffusers loads.

    Args:
        run: The run's folder.
        out: Folder to write, new.
        with_code: Take our code along, so that nobody needs this package.

    Raises:
        UserError: If the run's model is no U-Net, or the folder is there or cannot be written.
    """
    store = RunFolder.open(run)
    kind = store.config.model.kind
    if kind != "unet":
        raise UserError(f"run: {run} has a model of kind {kind!r}; only U-Nets can be exported")
    policy, _ = store.result()
    pipeline = to_pipeline(policy)
    if out.exists():
        raise UserError(f"--out: {out} exists already, choose another name")
    try:
        pipeline.save_pretrained(out, safe_serialization=True)
        if not with_code:
            _leave_code_out(out)
        (out / "README.md").write_text(_card(store, policy, with_code=with_code))
    except OSError as error:
        raise UserError(f"--out: cannot write to {out}: {error.strerror}") from error


def to_diffusers(policy: DenoisingPolicy) -> tuple[UNet2DModel, FewStepScheduler]:
    """Return the parts of a pipeline that draws the same samples as a policy.

    Coefficients are kept in the policy's own precision, so on the CPU the samples are equal to
    the last bit for the same noise.

    Raises:
        UserError: If the policy's network is no U-Net of diffusers.
    """
    network = policy.network
    if isinstance(network, OwnNetwork):
        network = network.network
    unet = network.unet if isinstance(network, UNet) else network
    if not isinstance(unet, UNet2DModel):
        raise UserError(
            f"diffusers: the sampler's network is a {type(unet).__name__}; only a UNet2DModel "
            "makes a pipeline"
        )
    clipping = {}
    if policy.clip is not None:
        clipping = {
            "clip": policy.clip,
            "alpha_bar": policy.alpha_bar.tolist(),
            "target": policy.target.tolist(),
        }
    return unet, FewStepScheduler(
        timesteps=policy.timesteps.tolist(),
        coef_x=policy.coef_x.tolist(),
        coef_output=policy.coef_output.tolist(),
        std=policy.std.tolist(),
        input_scale=None if policy.input_scale is None else policy.input_scale.tolist(),
        **clipping,
    )


def to_pipeline(policy: DenoisingPolicy) -> FewStepPipeline:
    """Return a pipeline that draws the same samples as a policy; raises as :func:`to_diffusers`."""
    unet, scheduler = to_diffusers(policy)
    return FewStepPipeline(unet=unet, scheduler=scheduler)


def _leave_code_out(folder: Path) -> None:
    """Let a saved pipeline find its classes in this package."""
    file = folder / "model_index.json"
    index = json.loads(file.read_text())
    index["_class_name"] = FewStepPipeline.__name__
    index["scheduler"] = [few_step.__name__, FewStepScheduler.__name__]
    file.write_text(json.dumps(index, indent=2) + "\n")
    (folder / PIPELINE_CODE.name).unlink()
    (folder / "scheduler" / SCHEDULER_CODE.name).unlink()


def _card(store: RunFolder, policy: DenoisingPolicy, *, with_code: bool) -> str:
    """Write the model card."""
    config = store.config
    by_class = policy.num_classes > 0
    labels = ", class_labels=[0] * 16" if by_class else ""
    rows = "\n".join(f"| {name} | {value} |" for name, value in _facts(store, policy).items())
    return f"""---
library_name: diffusers
tags: [{"class-conditional" if by_class else "unconditional"}-image-generation, few-step]
---

# A {policy.num_steps}-step sampler of {config.data.name}

Fine-tuned from a diffusion model of {config.noise.num_train_timesteps} steps by shortcut
fine-tuning (Fan and Lee, ICML 2023) with sft-rl {sft_rl.__version__}.

```python
{_loading(with_code=with_code)}
images = pipeline(batch_size=16{labels}).images
```

The number of steps is fixed. Pixels of -1..1 come out as 0..1.

| | |
|---|---|
{rows}
"""


def _loading(*, with_code: bool) -> str:
    """Write the lines that load the pipeline."""
    if with_code:
        return (
            "from diffusers import DiffusionPipeline\n\n"
            'pipeline = DiffusionPipeline.from_pretrained("FOLDER", trust_remote_code=True)'
        )
    return (
        f"import {few_step.__name__}  # the scheduler\n"
        f"from {few_step_pipeline.__name__} import {FewStepPipeline.__name__}\n\n"
        f'pipeline = {FewStepPipeline.__name__}.from_pretrained("FOLDER")'
    )


def _facts(store: RunFolder, policy: DenoisingPolicy) -> dict[str, Any]:
    """What the card tells of the run; a run that has not finished has no measured numbers."""
    config = store.config
    facts: dict[str, Any] = {
        "data": config.data.name,
        "algorithm": config.algorithm,
        "seed": config.seed,
        "function evaluations a sample": policy.num_steps,
        **({"classes": policy.num_classes} if policy.num_classes else {}),
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


def _told(metrics: dict[str, Any], name: str) -> str:
    """A metric with its standard error, where they are known."""
    if name not in metrics:
        return "not measured"
    error = metrics.get(f"{name}_se")
    return f"{metrics[name]:.4f}" + ("" if error is None else f" ± {error:.4f}")
