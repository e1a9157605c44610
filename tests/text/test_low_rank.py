"""Adapters of others, merged into the weights before all else: as diffusers loads them."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from sft_rl.cli import main
from sft_rl.config.files import load_config
from sft_rl.errors import UserError
from sft_rl.runs.parts import full_step_network
from sft_rl.runs.resolve import resolve

RANK, ALPHA = 2, 6
BLOCKS = {
    "down_blocks_1_attentions_0": "input_blocks_3_1",
    "mid_block_attentions_0": "middle_block_1",
    "up_blocks_0_attentions_0": "output_blocks_0_1",
    "up_blocks_0_attentions_1": "output_blocks_1_1",
}
"""Names of blocks as the original code of Stable Diffusion has them."""


@pytest.fixture(scope="module")
def adapters(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of one adapter the files that diffusers writes, wrote and kohya's trainer writes."""
    unet = StableDiffusionPipeline.from_pretrained(pipeline_folder).unet
    targets = ["to_q", "to_v", "to_out.0", "ff.net.2"]
    options = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, init_lora_weights=False)
    torch.manual_seed(1)
    unet.add_adapter(options)
    state = {name: t.detach().contiguous() for name, t in get_peft_model_state_dict(unet).items()}
    folder = tmp_path_factory.mktemp("adapters")
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=state, unet_lora_adapter_metadata=options.to_dict()
    )
    old, kohya, original = {}, {}, {}
    for name, tensor in state.items():
        layer, _, side = name.removesuffix(".weight").rpartition(".lora_")
        way = {"A": "down", "B": "up"}[side]
        old[f"unet.{layer}.lora.{way}.weight"] = tensor
        flat = f"lora_unet_{layer.replace('.', '_')}"
        kohya[f"{flat}.lora_{way}.weight"] = tensor
        kohya[f"{flat}.alpha"] = torch.tensor(float(ALPHA))
    for name, tensor in kohya.items():
        found = next(block for block in BLOCKS if block in name)
        original[name.replace(found, BLOCKS[found])] = tensor
    for kind, tensors in (("old", old), ("kohya", kohya), ("original", original)):
        save_file(tensors, folder / f"{kind}.safetensors")
    files = {k: folder / f"{k}.safetensors" for k in ("old", "kohya", "original")}
    return {"diffusers": folder, **files}


def test_an_adapter_of_others_does_what_it_does_in_diffusers(settings, pipeline_folder, adapters):
    x, t, hashes = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 15.0]), set()
    outputs = {}
    theirs = StableDiffusionPipeline.from_pretrained(pipeline_folder)
    for kind, place in adapters.items():
        config, data = resolve(load_config("images", [*settings, f"pretrained.lora={place}"]))
        hashes.add(config.pretrained.sha256)
        network, _ = full_step_network(config, data)
        assert not [name for name in network.state_dict() if "lora" in name]
        before = theirs.unet(x, t, data.embeddings["prompts"][[0, 2]]).sample
        theirs.load_lora_weights(adapters["kohya"] if kind == "original" else place)
        expected = theirs.unet(x, t, data.embeddings["prompts"][[0, 2]]).sample
        theirs.unload_lora_weights()
        assert (expected - before).abs().max() > 0.01
        outputs[kind] = network(x, t, torch.tensor([0, 2]))
        torch.testing.assert_close(outputs[kind], expected, rtol=1e-4, atol=1e-5)
    assert len(hashes) == len(adapters)
    torch.testing.assert_close(outputs["kohya"], outputs["diffusers"])
    torch.testing.assert_close(outputs["original"], outputs["diffusers"])
    assert not torch.allclose(outputs["old"], outputs["diffusers"])  # it says no alpha: the rank


def test_so_does_one_of_a_transformer(settings, sd3_folder, tmp_path):
    theirs = StableDiffusion3Pipeline.from_pretrained(sd3_folder)
    options = LoraConfig(r=RANK, target_modules=["to_q", "add_k_proj"], init_lora_weights=False)
    theirs.transformer.add_adapter(options)
    layers = get_peft_model_state_dict(theirs.transformer)
    own = {"transformer_lora_adapter_metadata": options.to_dict()}
    StableDiffusion3Pipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers, **own)
    of_both = [f"pretrained.path={sd3_folder}", f"pretrained.lora={tmp_path}"]
    config, data = resolve(load_config("images", [*settings, *of_both, "sampler.start_time=19"]))
    network, _ = full_step_network(config, data)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 15.0])
    tokens, pooled = (data.embeddings[name][[0, 2]] for name in ("prompts", "pooled"))
    given = {"timestep": t, "encoder_hidden_states": tokens, "pooled_projections": pooled}
    expected = theirs.transformer(x, **given).sample
    torch.testing.assert_close(network(x, t, torch.tensor([0, 2])), expected, rtol=1e-4, atol=1e-5)
    theirs.transformer.disable_adapters()
    assert (theirs.transformer(x, **given).sample - expected).abs().max() > 0.01


def test_what_is_no_such_adapter_is_one_line(settings, adapters, tmp_path, capsys):
    def refused(place: Path | str, *own: str) -> str:
        run = ["train", "images", *settings, f"pretrained.lora={place}", "--out", f"{tmp_path}/run"]
        assert main([*run, *own]) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return said

    assert "expected a .safetensors file, or a folder with pytorch_lora" in refused(tmp_path)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"none")
    assert "pretrained.lora: cannot read" in refused(broken)
    for name in ("unet.mid_block.attn.to_q.lora_A.weight", "text_encoder.q_proj.lora_A.weight"):
        save_file({name: torch.ones(2, 8)}, broken)
        assert "tensors of layers that the unet has not, the first is" in refused(broken)
    alone = [s for s in settings if not s.startswith(("pretrained.", "prompts.", "data."))]
    with pytest.raises(UserError, match=r"pretrained\.lora: goes with pretrained\.path"):
        load_config("digits", [*alone, f"pretrained.lora={adapters['old']}"])
