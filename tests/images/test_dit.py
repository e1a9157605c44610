"""DiTTransformer2DModel of pixels: read, tuned, exported."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler

from sft_rl.cli import main
from sft_rl.config.files import load_config
from sft_rl.errors import UserError
from sft_rl.runs.folder import RunFolder
from sft_rl.runs.parts import full_step_network
from sft_rl.runs.resolve import resolve

SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "patch_size": 2,
    "norm_num_groups": 4,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A flow-matching DiT of digits that learned a variance, as diffusers saves its parts."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        sample_size=8, in_channels=1, out_channels=2, num_embeds_ada_norm=10, **SIZES
    )
    model.save_pretrained(tmp_path / "dit" / "transformer")
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "dit" / "scheduler")
    return tmp_path / "dit"


def test_a_folder_is_read_tuned_and_exported(
    folder: Path, tmp_path: Path, tiny_digits: tuple[str, ...]
):
    tiny = [s for s in tiny_digits if not s.startswith(("model.unet", "noise."))]
    quick = ["metrics.full_step=off", "metrics.distance=sliced_wasserstein"]
    given = [*tiny, *quick, f"pretrained.path={folder}", "model.null_class=true"]
    config, data = resolve(load_config("digits", given))
    assert (config.model.kind, config.model.num_classes) == ("dit", 10)
    assert config.noise.path == config.model.prediction == "flow"
    network, _ = full_step_network(config, data)
    theirs = DiTTransformer2DModel.from_pretrained(folder / "transformer")
    x, t, labels = (
        torch.randn(3, 1, 8, 8),
        torch.tensor([1.0, 40.0, 999.0]),
        torch.tensor([0, 9, 10]),
    )
    with torch.no_grad():
        wanted = theirs(x, t, class_labels=labels).sample[:, :1]
        assert torch.equal(network(x, t, labels), wanted)
    run, out = tmp_path / "run", tmp_path / "pipeline"
    assert main(["train", "digits", *given, "--out", str(run)]) == 0
    assert main(["export", str(run), "--out", str(out)]) == 0
    pipeline = DiffusionPipeline.from_pretrained(out, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    of_class = {"class_labels": 3, "output_type": "pt"}
    images = pipeline(6, generator=torch.Generator().manual_seed(5), **of_class).images
    policy, _ = RunFolder.open(run).result()
    samples = policy.sample(6, torch.Generator().manual_seed(5), torch.full((6,), 3))
    assert np.array_equal(images.numpy(), (samples / 2 + 0.5).clamp(0, 1).numpy())
    with pytest.raises(ValueError, match="of 0 to 9"):
        pipeline(1, class_labels=10)


def test_what_is_not_one_of_pixels_is_one_line(folder: Path, tiny_digits: tuple[str, ...]):
    def refused(words: str, *given: str) -> None:
        with pytest.raises(UserError, match=words) as error:
            resolve(load_config("digits", [*tiny_digits, *given]))
        assert "\n" not in str(error.value)

    refused("whole patches of 3 pixels, got 8x8", "model.kind=dit", 'model.unet={"patch_size": 3}')
    given = (f"pretrained.path={folder}", "pretrained.preconditioning=vp")
    refused("'vp' goes with the file of an EDM network, .* is none", *given)
    refused("goes with the file of an EDM network in pretrained.path, got none", given[1])
    (folder / "vae").mkdir()
    refused("no model_index.json in", f"pretrained.path={folder}")
