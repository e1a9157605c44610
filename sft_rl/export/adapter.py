"""A run's low-rank adapter alone, in the format of peft."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save

from sft_rl.errors import UserError
from sft_rl.export.card import model_card
from sft_rl.networks.lora import Adapted
from sft_rl.policy import DenoisingPolicy
from sft_rl.runs.folder import RunFolder
from sft_rl.storage.files import write_synced

USAGE = """from peft import PeftModel

network = PeftModel.from_pretrained(base, "FOLDER")  # base: the network before fine-tuning
network = network.merge_and_unload()"""


def adapted(store: RunFolder, policy: DenoisingPolicy) -> Adapted:
    """Return a policy's network with its adapter.

    Raises:
        UserError: If there is no adapter, or it is on other weights than those of the model.
    """
    if not isinstance(policy.network, Adapted):
        raise UserError("--adapter: the run has none; it was trained without policy.lora.rank")
    if store.config.pretrained.lora is not None:
        raise UserError(
            "--adapter: it is on weights with pretrained.lora in them, not on the model's; leave "
            "--adapter out"
        )
    if store.config.sampler.guidance_scale != 1.0:
        raise UserError(
            "--adapter: under sampler.guidance_scale it is on weights that were fitted to the "
            "guidance, not on the model's; leave --adapter out"
        )
    return policy.network


def write_adapter(store: RunFolder, policy: DenoisingPolicy, out: Path) -> None:
    """Write a policy's adapter as a new folder that ``PeftModel.from_pretrained`` reads.

    Names are those of the network that it came from: of diffusers' where that is one.

    Raises:
        UserError: If it has none that others can use, or the folder cannot be written.
    """
    network = adapted(store, policy)
    try:
        out.mkdir(parents=True)
        save_by_peft(network, out)
        (out / "README.md").write_text(model_card(store, policy, usage=USAGE))
    except OSError as error:
        raise UserError(f"--out: cannot write to {out}: {error.strerror}") from error


def save_by_peft(network: Adapted, out: Path) -> None:
    """Write the two files of an adapter that peft reads into a folder."""
    state = {f"base_model.model.{name}": tensor for name, tensor in network.adapter().items()}
    network.config.save_pretrained(str(out))
    write_synced(out / "adapter_model.safetensors", save(state))
