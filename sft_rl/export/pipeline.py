"""A run's sampler as a pipeline of diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import DiTTransformer2DModel, ModelMixin, UNet2DModel

from sft_rl.data.units import Units
from sft_rl.errors import UserError
from sft_rl.export import few_step, few_step_pipeline
from sft_rl.export.adapter import write_adapter
from sft_rl.export.card import model_card
from sft_rl.export.few_step import FewStepScheduler
from sft_rl.export.few_step_pipeline import FewStepPipeline
from sft_rl.export.latent_pipeline import write_latent_adapter, write_latent_pipeline
from sft_rl.export.program import program_usage, to_program
from sft_rl.networks.lora import base_of, inner_of, merged
from sft_rl.networks.unet import UNet
from sft_rl.policy import DenoisingPolicy
from sft_rl.pretrained.pipelines import kind_of
from sft_rl.runs.folder import RunFolder

SCHEDULER_CODE = Path(few_step.__file__)
PIPELINE_CODE = Path(few_step_pipeline.__file__)


def export(run: Path, out: Path, *, with_code: bool, adapter: bool = False) -> None:
    """Write a run's sampler as a folder that diffusers loads, or as a program of `torch.export`.

    A U-Net of diffusers makes a pipeline, a network of latents the one it came from, any other
    network a file ``sampler.pt2``. An adapter is merged into the network's weights.

    Args:
        run: The run's folder.
        out: Folder to write, new.
        with_code: Take our code along, so that nobody needs this package.
        adapter: Write the adapter alone, as peft keeps it, or as diffusers does.

    Raises:
        UserError: If the folder is there or cannot be written, torch does not understand a network
            of one's own, or there is no adapter.
    """
    store = RunFolder.open(run)
    policy, _ = store.result()
    if out.exists():
        raise UserError(f"--out: {out} exists already, choose another name")
    samples = store.config.samples
    if adapter or samples.latents is not None:
        if samples.latents is None:
            write_adapter(store, policy, out)
            return
        kind = kind_of(Path(str(store.config.pretrained.path)))
        scheduler = few_step_scheduler(policy, asks_scale=kind.asks_scale)
        write = write_latent_adapter if adapter else write_latent_pipeline
        write(store, policy, scheduler, out, with_code=with_code)
        return
    is_pipeline = isinstance(base_of(policy.network), UNet) and policy.conditions is None
    pipeline = to_pipeline(policy) if is_pipeline else None
    program = None if is_pipeline else to_program(policy, Units(store.config.samples))
    try:
        if pipeline is not None:
            pipeline.save_pretrained(out, safe_serialization=True)
            usage = _loading(policy, with_code=with_code)
            if not with_code:
                _leave_code_out(out)
        if program is not None:
            out.mkdir(parents=True)
            torch.export.save(program, out / "sampler.pt2")
            usage = program_usage(policy)
        (out / "README.md").write_text(model_card(store, policy, usage=usage))
    except OSError as error:
        raise UserError(f"--out: cannot write to {out}: {error.strerror}") from error


def to_diffusers(policy: DenoisingPolicy) -> tuple[ModelMixin, FewStepScheduler]:
    """Return the parts of a pipeline that draws the same samples as a policy.

    Coefficients are kept in the policy's own precision, so on the CPU the samples are equal to
    the last bit for the same noise.

    Raises:
        UserError: If the policy's network is no U-Net of diffusers.
    """
    unet = inner_of(merged(policy.network))
    if policy.conditions is not None:
        raise UserError(
            "diffusers: its pipelines take no vectors of data.condition_columns; use to_program()"
        )
    if not isinstance(unet, UNet2DModel | DiTTransformer2DModel):
        raise UserError(
            f"diffusers: the sampler's network is a {type(unet).__name__}; only a UNet2DModel "
            "or DiTTransformer2DModel makes a pipeline"
        )
    return unet, few_step_scheduler(policy)


def few_step_scheduler(policy: DenoisingPolicy, *, asks_scale: bool = True) -> FewStepScheduler:
    """Return a policy's few steps as a scheduler of diffusers.

    Args:
        policy: The sampler.
        asks_scale: Whether the pipeline lets it scale what the network sees.
    """
    clipping = {}
    if policy.clip is not None:
        clipping = {
            "clip": policy.clip,
            "alpha_bar": policy.alpha_bar.tolist(),
            "target": policy.target.tolist(),
        }
    scheduler: FewStepScheduler = FewStepScheduler(
        timesteps=policy.timesteps.tolist(),
        coef_x=policy.coef_x.tolist(),
        coef_output=policy.coef_output.tolist(),
        std=policy.std.tolist(),
        input_scale=None if policy.input_scale is None else policy.input_scale.tolist(),
        asks_scale=asks_scale,
        **clipping,
    )
    return scheduler


def to_pipeline(policy: DenoisingPolicy) -> FewStepPipeline:
    """Return a pipeline that draws the same samples as a policy; raises as :func:`to_diffusers`."""
    unet, scheduler = to_diffusers(policy)
    return FewStepPipeline(unet=unet, scheduler=scheduler, num_classes=policy.num_classes or None)


def _leave_code_out(folder: Path) -> None:
    """Let a saved pipeline find its classes in this package."""
    file = folder / "model_index.json"
    index = json.loads(file.read_text())
    index["_class_name"] = FewStepPipeline.__name__
    index["scheduler"] = [few_step.__name__, FewStepScheduler.__name__]
    file.write_text(json.dumps(index, indent=2) + "\n")
    (folder / PIPELINE_CODE.name).unlink()
    (folder / "scheduler" / SCHEDULER_CODE.name).unlink()


def _loading(policy: DenoisingPolicy, *, with_code: bool) -> str:
    """The lines that load the pipeline and draw from it."""
    labels = ", class_labels=[0] * 16" if policy.num_classes else ""
    drawn = f"\nimages = pipeline(batch_size=16{labels}).images  # pixels of 0..1"
    if with_code:
        return (
            "from diffusers import DiffusionPipeline\n\n"
            'pipeline = DiffusionPipeline.from_pretrained("FOLDER", trust_remote_code=True)'
        ) + drawn
    return (
        f"import {few_step.__name__}  # the scheduler\n"
        f"from {few_step_pipeline.__name__} import {FewStepPipeline.__name__}\n\n"
        f'pipeline = {FewStepPipeline.__name__}.from_pretrained("FOLDER")'
    ) + drawn
