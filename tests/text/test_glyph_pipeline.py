"""What the script that pretrains a pipeline of glyphs learns from."""

import io

import numpy as np
import torch
from PIL import Image
from transformers import CLIPTokenizer

from examples.glyph_pipeline import CAPTIONS, NUM_TOKENS, pictures, png, tokenizer_of


def test_captions_say_what_is_drawn(tmp_path):
    images, labels = pictures(400, stream=3)
    assert images.shape == (400, 1, 16, 16)
    assert torch.equal(images, pictures(400, stream=3)[0])
    ink = (images.float() - images[:, :, :1, :1]).abs().sum(dim=(1, 2, 3))  # the corner is paper
    thick = torch.tensor([" thick " in CAPTIONS[i] for i in labels])
    assert ink[thick].mean() > 1.5 * ink[~thick].mean()
    shown = np.asarray(Image.open(io.BytesIO(png(images[0, 0].numpy()))))
    assert np.array_equal(shown, images[0, 0])
    tokenizer_of(tmp_path / "made").save_pretrained(tmp_path / "kept")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "kept")
    tokens = tokenizer([*CAPTIONS, ""], padding="max_length", return_tensors="pt").input_ids
    assert tokens.shape == (41, NUM_TOKENS)
    assert len(torch.unique(tokens, dim=0)) == 41
    assert tokenizer.decode(tokens[27], skip_special_tokens=True) == CAPTIONS[27]
