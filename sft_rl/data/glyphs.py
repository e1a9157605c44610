"""Digits and letters drawn on the fly: labelled pictures of any size, as many as wanted.

The fonts are those that matplotlib ships. Picture i of a stream depends on (stream, i) alone, so a
set can be extended, and drawn in parts.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from sft_rl.config import DataConfig
from sft_rl.data.image_files import LabelledImages
from sft_rl.errors import UserError
from sft_rl.seeding import derive_seed
from sft_rl.storage.mapped import cached_pictures
from sft_rl.types import Progress, silent

Array = np.ndarray
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmti10", "cmss10", "cmtt10"),
)
"""Files of DejaVu, STIX and Computer Modern, without `.ttf`; what `Glyphs.font` counts."""
SUPERSAMPLING = 4
"""Points along a side of a pixel that are averaged."""
MASTER, CAPITAL = 128, 72
"""Pixels of a picture that a character is drawn in at first, and of a capital letter's height."""
NUM_RANDOM = 16
"""Random numbers of a picture; a multiple of the 4 that a step of Philox gives."""
ROTATION, SLANT = 15.0, 12.0
"""Largest rotation and slant to either side, degrees."""
HEIGHTS = (0.62, 0.84)
"""Range of a capital letter's height, as a share of the picture's, if there is room for it."""
THICKEST = 3
"""Most pixels of the first drawing by which strokes are thickened on either side."""
MARGIN = 0.03
"""Room between a character and the edge, as a share of the picture's side."""
CHUNK = 2000
FORMAT = 1
"""Part of the cache's key; counts changes of the code that give other pictures."""


def cached_glyphs(config: DataConfig, progress: Progress = silent) -> tuple[LabelledImages, int]:
    """Pictures of some settings, from the cache or drawn now: for training, then held-out ones.

    Returns:
        All of them, mapped into memory, and how many are for training.

    Raises:
        UserError: If a font is not there.
    """
    num_train = config.num_points
    num = num_train + max(int(num_train * config.test_fraction), 2)
    streams = [derive_seed(config.seed, f"glyphs {purpose}") for purpose in ("train", "held out")]
    parts = [
        glyph_attributes(size, characters=config.characters, stream=stream)
        for size, stream in zip((num_train, num - num_train), streams, strict=True)
    ]
    key = {
        "format": FORMAT,
        "drawn by": {name: version(name) for name in ("matplotlib", "pillow", "numpy")},
        "streams": streams,
        **config.model_dump(include={"characters", "image_size", "channels"}),
        "num": [num_train, num],
    }

    def fill(images: Array) -> dict[str, str]:
        done = 0
        for part in parts:
            for first in range(0, len(part.font), CHUNK):
                some = part[first : first + CHUNK]
                images[done : done + len(some.font)] = draw_glyphs(
                    some,
                    characters=config.characters,
                    size=config.image_size,
                    channels=config.channels,
                )
                done += len(some.font)
                progress(done, num, {})
        return {}

    images, _ = cached_pictures(key, (num, *config.image_shape), fill)
    labels = np.concatenate([part.character for part in parts])
    return LabelledImages(images, labels, tuple(config.characters)), num_train


@dataclass(frozen=True, kw_only=True)
class Glyphs:
    """What is drawn in some pictures: arrays of the same length N.

    Attributes:
        character: Index into the characters, int64; the label.
        font: Index into `FONTS`, int64.
        thickness: Pixels by which strokes are thickened, of a capital 72 pixels high; int64.
        rotation: Degrees, anticlockwise.
        slant: Degrees by which uprights lean to the right, beside what the font does.
        height: Height of a capital letter as a share of the picture's, before it is made to fit.
        position: Where the character lies in the room it has, -1..1 to the right and down (N, 2).
        ink: Colour of the strokes, sRGB 0..1, shape (N, 3).
        paper: Colour of the background, the same.
    """

    character: Array
    font: Array
    thickness: Array
    rotation: Array
    slant: Array
    height: Array
    position: Array
    ink: Array
    paper: Array

    def __getitem__(self, rows: slice) -> Glyphs:
        return Glyphs(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def glyph_attributes(num: int, *, characters: str, stream: int, start: int = 0) -> Glyphs:
    """Choose what is drawn in the pictures `start` … `start + num - 1` of a stream.

    Args:
        num: How many.
        characters: What may be drawn.
        stream: Seed.
        start: The first picture.
    """
    source = np.random.Philox(key=stream)
    source.advance(start * NUM_RANDOM // 4)
    u = np.random.Generator(source).random((num, NUM_RANDOM)).T
    dark = u[8] < 0.5  # light strokes on dark paper
    paper = _srgb(
        np.where(dark, 0.18 + 0.18 * u[9], 0.82 + 0.15 * u[9]), 0.03 + 0.09 * u[10], u[11]
    )
    ink = _srgb(
        np.where(dark, 0.74 + 0.22 * u[12], 0.30 + 0.22 * u[12]), 0.05 + 0.17 * u[13], u[14]
    )
    return Glyphs(
        character=(u[0] * len(characters)).astype(np.int64),
        font=(u[1] * len(FONTS)).astype(np.int64),
        thickness=(u[2] * (THICKEST + 1)).astype(np.int64),
        rotation=(2 * u[3] - 1) * ROTATION,
        slant=(2 * u[4] - 1) * SLANT,
        height=HEIGHTS[0] + u[5] * (HEIGHTS[1] - HEIGHTS[0]),
        position=2 * u[6:8].T - 1,
        ink=ink,
        paper=paper,
    )


def draw_glyphs(glyphs: Glyphs, *, characters: str, size: int, channels: int) -> Array:
    """Draw pictures, anti-aliased, uint8, shape (N, channels, size, size).

    Args:
        glyphs: What is in them.
        characters: What `glyphs.character` counts.
        size: Pixels along a side.
        channels: 3, or 1 for the grey of the same pictures.

    Raises:
        UserError: If a font is not there.
    """
    pictures = np.empty((len(glyphs.font), channels, size, size), np.uint8)
    for first in range(0, len(pictures), CHUNK):
        some = glyphs[first : first + CHUNK]
        cover = np.stack([_cover(some, i, characters, size) for i in range(len(some.font))])
        share = cover[:, None].astype(np.float32) / 255
        ink, paper = (
            (c if channels == 3 else c @ LUMA[:, None]).astype(np.float32)[..., None, None]
            for c in (some.ink, some.paper)
        )
        mixed = paper + share * (ink - paper)
        pictures[first : first + CHUNK] = (mixed * 255).round()
    return pictures


def _cover(glyphs: Glyphs, i: int, characters: str, size: int) -> Array:
    """How much of each pixel strokes cover, 0..255, uint8, shape (size, size)."""
    from PIL import Image

    side = size * SUPERSAMPLING
    scale = -(-size // 64)  # of the first drawing, so that it is never enlarged much
    master = _master(
        characters[glyphs.character[i]], FONTS[glyphs.font[i]], int(glyphs.thickness[i]), scale
    )
    left, top, right, bottom = master.getbbox()
    angle, lean = np.deg2rad(glyphs.rotation[i]), np.tan(np.deg2rad(glyphs.slant[i]))
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]]) @ np.array([[1.0, -lean], [0.0, 1.0]])
    turn *= glyphs.height[i] * side / (CAPITAL * scale)
    half = np.abs(turn) @ [(right - left) / 2, (bottom - top) / 2]
    room = side * (0.5 - MARGIN)
    fit = min(1.0, room / half.max())
    centre = side / 2 + glyphs.position[i] * (room - half * fit)
    back = np.linalg.inv(turn * fit)  # from the picture to the first drawing
    offset = [(left + right) / 2, (top + bottom) / 2] - back @ centre
    affine = (*back[0], offset[0], *back[1], offset[1])
    large = master.transform(
        (side, side), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
    )
    return np.asarray(large.reduce(SUPERSAMPLING))


@lru_cache(maxsize=4096)
def _master(character: str, font: str, thickness: int, scale: int) -> Any:
    """A character in the middle of a picture of 128 pixels, or `scale` times as many."""
    from PIL import Image, ImageDraw

    picture = Image.new("L", (MASTER * scale,) * 2)
    middle = MASTER * scale // 2
    canvas, drawn = ImageDraw.Draw(picture), _font(font, scale)
    left, top, right, bottom = drawn.getbbox(character, anchor="ls")
    corner = (middle - (left + right) / 2, middle - (top + bottom) / 2)
    canvas.text(
        corner, character, fill=255, font=drawn, anchor="ls", stroke_width=thickness * scale
    )
    return picture


@cache
def _font(name: str, scale: int) -> Any:
    """A font in the size whose capitals are 72 pixels high, or `scale` times that."""
    from PIL import ImageFont

    spec = importlib.util.find_spec("matplotlib")  # not imported: that takes a second
    folder = Path((spec and spec.origin) or "matplotlib").parent / "mpl-data" / "fonts" / "ttf"
    file = folder / f"{name}.ttf"
    try:
        content = file.read_bytes()  # of a name that is not there Pillow takes another's
        top, bottom = ImageFont.truetype(BytesIO(content), 100).getbbox("H", anchor="ls")[1::2]
        return ImageFont.truetype(BytesIO(content), 100 * CAPITAL * scale / (bottom - top))
    except OSError as error:
        raise UserError(
            f"data.name: glyphs are drawn in matplotlib's fonts, and {file} cannot be read "
            f"({error}); install matplotlib anew"
        ) from error


LUMA = np.array([0.299, 0.587, 0.114])
"""Share of red, green and blue in grey (Rec. 601)."""
OKLAB_TO_LMS = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def _srgb(lightness: Array, chroma: Array, hue: Array) -> Array:
    """Colours of Oklch (Ottosson, 2020), hue in turns, as sRGB 0..1, shape (N, 3).

    Alike in lightness they are alike to the eye, so that strokes stand out from every paper.
    """
    angle = 2 * np.pi * hue
    lab = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=1)
    linear = ((lab @ OKLAB_TO_LMS.T) ** 3 @ LMS_TO_RGB.T).clip(0, 1)
    curved = 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    return np.asarray(np.where(linear <= 0.0031308, 12.92 * linear, curved))
