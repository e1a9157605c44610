"""CLIP's opinion of pictures and their prompts: transformers' own number, and what is no CLIP."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_pipelines import write_clip
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from sft_rl.config.files import load_config
from sft_rl.errors import UserError
from sft_rl.metrics.clip import Clip, clip_score
from sft_rl.runs.resolve import resolve

PROMPTS = [
    "a thin seven leaning right",
    "two",
    "a thick two leaning left leaning left leaning left",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder)
    return folder


@pytest.mark.parametrize("channels", [1, 3])
def test_the_score_is_that_of_transformers(folder, channels):
    """Pictures of another size, grey or not, and a prompt that is too long."""
    images = np.random.default_rng(0).integers(256, size=(3, channels, 40, 40), dtype=np.uint8)
    ours = clip_score(*Clip(str(folder), pixel_max=255)(images, PROMPTS))
    model = CLIPModel.from_pretrained(folder).eval()
    pictures = [Image.fromarray(np.moveaxis(i, 0, -1).squeeze()).convert("RGB") for i in images]
    pixels = CLIPImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt")
    tokens = CLIPTokenizer.from_pretrained(folder)(
        PROMPTS, padding=True, truncation=True, return_tensors="pt"
    )
    logits = model(**tokens, **pixels).logits_per_image.diagonal() / model.logit_scale.exp()
    assert np.ptp(ours) > 0.1
    np.testing.assert_allclose(ours, 100 * logits.detach().clamp(min=0), rtol=1e-4, atol=1e-4)


def test_what_is_no_clip_is_one_line(folder, tmp_path):
    with pytest.raises(UserError, match=r"metrics\.clip_path: no config\.json in "):
        Clip(str(tmp_path), pixel_max=255)
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"none")
    with pytest.raises(UserError, match=r"metrics\.clip_path: cannot read") as error:
        Clip(str(broken), pixel_max=255)(np.zeros((1, 1, 30, 30), np.uint8), PROMPTS[:1])
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"metrics\.clip_path: goes with the prompts of a text"):
        resolve(load_config("digits", [f"metrics.clip_path={folder}"]))
