"""A run's sampler as the pipeline of latents that it came from, or its adapter for that."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import loaders

from sft_rl.errors import UserError
from sft_rl.export import few_step
from sft_rl.export.adapter import adapted, save_by_peft
from sft_rl.export.card import model_card
from sft_rl.export.few_step import FewStepScheduler
from sft_rl.networks.lora import inner_of, merged
from sft_rl.policy import DenoisingPolicy
from sft_rl.pretrained.folders import PARTS, network_folder, read_json
from sft_rl.pretrained.pipeline_kinds import KINDS
from sft_rl.pretrained.pipelines import check_pipeline
from sft_rl.runs.folder import RunFolder

CODE = Path(few_step.__file__)


def write_latent_pipeline(
    store: RunFolder,
    policy: DenoisingPolicy,
    scheduler: FewStepScheduler,
    out: Path,
    *,
    with_code: bool,
) -> None:
    """Write the pipeline with another network and another scheduler, and all else as it was.

    So it keeps its safety checker, its tokenizer and its settings.

    Args:
        store: The run.
        policy: Its sampler.
        scheduler: The sampler's few steps.
        out: Folder to write, new.
        with_code: Take the scheduler's code along.

    Raises:
        UserError: If the pipeline is not there any more, or the folder cannot be written.
    """
    base = Path(str(store.config.pretrained.path))
    check_pipeline(base)
    index = read_json(base / "model_index.json")
    kind = index["_class_name"]
    parts = [name for name, found in index.items() if isinstance(found, list) and found[1]]
    with _writing(out):
        out.mkdir(parents=True)
        for part in parts:
            if part not in (*PARTS, "scheduler"):
                shutil.copytree(base / part, out / part)
        network: Any = inner_of(merged(policy.network))
        network.save_pretrained(out / network_folder(base).name, safe_serialization=True)
        _write_scheduler(scheduler, out, with_code=with_code)
        place = CODE.stem if with_code else few_step.__name__
        index["scheduler"] = [place, FewStepScheduler.__name__]
        (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        options = ", trust_remote_code=True" if with_code else ""
        options += "".join(f", {part}=None" for part in KINDS[kind].optional if part not in parts)
        usage = f"""from diffusers import {kind}

pipeline = {kind}.from_pretrained("FOLDER"{options})
images = {KINDS[kind].call}.images"""
        if not with_code:
            usage = f"import {few_step.__name__}  # the scheduler\n{usage}"
        (out / "README.md").write_text(model_card(store, policy, usage=usage))


def write_latent_adapter(
    store: RunFolder,
    policy: DenoisingPolicy,
    scheduler: FewStepScheduler,
    out: Path,
    *,
    with_code: bool,
) -> None:
    """Write the file that ``load_lora_weights`` reads, and the scheduler; arguments as above.

    Of a pipeline that has no such method, the files that peft reads.

    Raises:
        UserError: If there is no adapter, or it is on other weights than the pipeline's.
    """
    network = adapted(store, policy)
    name = read_json(Path(str(store.config.pretrained.path)) / "model_index.json")["_class_name"]
    kind = KINDS[name]
    part = kind.denoiser
    with _writing(out):
        out.mkdir(parents=True)
        if kind.lora is None:
            save_by_peft(network, out)
            load = f"""from peft import PeftModel
pipeline.{part} = PeftModel.from_pretrained(pipeline.{part}, "FOLDER").merge_and_unload()"""
        else:
            layers = {f"{part}_lora_layers": network.adapter()}
            layers[f"{part}_lora_adapter_metadata"] = network.config.to_dict()
            getattr(loaders, kind.lora).save_lora_weights(out, **layers)
            load = 'pipeline.load_lora_weights("FOLDER")'
        _write_scheduler(scheduler, out, with_code=with_code)
        place = CODE.stem if with_code else few_step.__name__
        usage = f"""from diffusers import {name}
from {place} import {FewStepScheduler.__name__}  # the file is in FOLDER/scheduler

pipeline = {name}.from_pretrained("BASE MODEL")
{load}
pipeline.scheduler = {FewStepScheduler.__name__}.from_pretrained("FOLDER/scheduler")
images = {kind.call}.images"""
        (out / "README.md").write_text(model_card(store, policy, usage=usage))


def _write_scheduler(scheduler: FewStepScheduler, out: Path, *, with_code: bool) -> None:
    scheduler.save_pretrained(out / "scheduler")
    if with_code:
        shutil.copyfile(CODE, out / "scheduler" / CODE.name)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--out: cannot write to {out}: {error.strerror}") from error
