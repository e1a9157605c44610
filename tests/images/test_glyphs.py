"""Characters drawn on the fly: what is said of a picture is what is in it."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from sft_rl.config import DataConfig
from sft_rl.data import load_dataset
from sft_rl.data.glyphs import FONTS, Glyphs, _font, _master, draw_glyphs, glyph_attributes
from sft_rl.errors import UserError

CHARACTERS = "0L7i"
PLAIN = {"rotation": 0.0, "slant": 0.0, "position": 0.0, "height": 0.6, "font": 0, "thickness": 0}


def attributes(num: int, **changes: float) -> Glyphs:
    """Attributes of a few pictures, some the same in all."""
    drawn = glyph_attributes(num, characters=CHARACTERS, stream=3)
    same = {name: np.full_like(getattr(drawn, name), value) for name, value in changes.items()}
    return dataclasses.replace(drawn, **same)


def draw(glyphs: Glyphs, size: int = 32, channels: int = 3) -> np.ndarray:
    return draw_glyphs(glyphs, characters=CHARACTERS, size=size, channels=channels)


def test_a_picture_depends_on_its_stream_and_number_alone():
    every = glyph_attributes(12, characters=CHARACTERS, stream=3)
    some = glyph_attributes(4, characters=CHARACTERS, stream=3, start=5)
    np.testing.assert_array_equal(draw(some), draw(every)[5:9])
    other = glyph_attributes(12, characters=CHARACTERS, stream=4)
    assert (draw(other) != draw(every)).reshape(12, -1).any(axis=1).all()


def test_attributes_are_spread_over_their_ranges():
    drawn = glyph_attributes(4000, characters=CHARACTERS, stream=0)
    for name, num in (("character", len(CHARACTERS)), ("font", len(FONTS))):
        counts = np.bincount(getattr(drawn, name), minlength=num)
        assert len(counts) == num and (np.abs(counts * num / 4000 - 1) < 0.4).all()
    lightness = [colours @ [0.2126, 0.7152, 0.0722] for colours in (drawn.ink, drawn.paper)]
    assert np.abs(lightness[0] - lightness[1]).min() > 0.15  # strokes stand out, always


def test_paper_and_ink_have_their_colours_and_grey_is_their_luma():
    drawn = attributes(8, **PLAIN | {"height": 0.9, "thickness": 3})
    pictures = draw(drawn, size=64)
    for corner in (pictures[:, :, 0, 0], pictures[:, :, -1, -1]):
        np.testing.assert_array_equal(corner, (drawn.paper * 255).round())
    distance = np.abs(pictures - drawn.ink[:, :, None, None] * 255).max(axis=1)
    assert (distance.reshape(8, -1).min(axis=1) <= 1).all()  # somewhere there is nothing but ink
    luma = np.tensordot([0.299, 0.587, 0.114], pictures, (0, 1))
    np.testing.assert_allclose(draw(drawn, size=64, channels=1)[:, 0], luma, atol=1.5)


def covered(glyphs: Glyphs, size: int = 64) -> np.ndarray:
    """Share of ink by pixel, of black on white."""
    black = {"ink": np.zeros_like(glyphs.ink), "paper": np.ones_like(glyphs.paper)}
    return 1 - draw(dataclasses.replace(glyphs, **black), size, channels=1)[:, 0] / 255


def test_a_letter_lies_where_and_as_its_attributes_say():
    plain = PLAIN | {"character": CHARACTERS.index("L")}
    rows, columns = np.nonzero(covered(attributes(1, **plain))[0] > 0.5)
    assert np.ptp(rows) + 1 == pytest.approx(0.6 * 64, abs=1.5)
    assert rows.min() + rows.max() == pytest.approx(63, abs=1.5)  # in the middle
    heavy = covered(attributes(1, **plain | {"thickness": 3}))
    assert heavy.sum() > 1.3 * covered(attributes(1, **plain)).sum()
    # A stem turned anticlockwise leans to the left, one that is slanted to the right.
    for name, side in (("rotation", -1), ("slant", 1)):
        leaning = covered(attributes(1, **plain | {name: 12.0}))[0] > 0.5
        top, bottom = (
            np.nonzero(leaning[row])[0].min() for row in (rows.min() + 4, rows.max() - 9)
        )
        assert side * (int(top) - int(bottom)) > 3
    moved = attributes(1, **plain | {"position": 1.0})
    rows, columns = np.nonzero(covered(moved)[0] > 0.5)
    assert rows.max() == pytest.approx(61, abs=1) and columns.max() == pytest.approx(61, abs=1)


def test_a_picture_is_the_same_at_any_size():
    drawn = attributes(6)
    large = covered(drawn, size=64)
    for size in (16, 32):
        blocks = large.reshape(6, size, 64 // size, size, 64 // size).mean(axis=(2, 4))
        np.testing.assert_allclose(covered(drawn, size), blocks, atol=0.08)
    assert covered(drawn, 28).shape == (6, 28, 28)


def test_sets_are_extended_held_out_beside_and_cached(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("SFT_RL_CACHE", str(tmp_path))
    config = DataConfig(name="glyphs", image_size=16, num_points=20, characters="AB")
    data = load_dataset(config)
    assert data.shape == (3, 16, 16) and data.units.samples.num_classes == 2
    assert len(data.held_out) == 4 and not np.array_equal(data.held_out, data.train[:4])
    more = load_dataset(config.model_copy(update={"num_points": 30}))
    assert len(list((tmp_path / "pictures").glob("[!.]*"))) == 2
    np.testing.assert_array_equal(more.train[:20], data.train)
    again = load_dataset(config)
    assert again.fingerprint == data.fingerprint and again.labels.equal(data.labels)


def test_missing_fonts_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "matplotlib", raising=False)
    _font.cache_clear()
    _master.cache_clear()
    with pytest.raises(UserError, match=r"data\.name: glyphs .*DejaVuSans\.ttf.*matplotlib anew"):
        draw(attributes(1, **PLAIN))


@pytest.mark.parametrize("characters", ["", "AA", "AÄ", "A B"])
def test_characters_are_different_digits_and_letters(characters: str):
    with pytest.raises(ValueError, match="needs different digits and letters"):
        DataConfig(name="glyphs", characters=characters)
