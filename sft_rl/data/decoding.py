"""From an encoded picture to whole numbers of one size; what had to be converted is told."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from sft_rl.config import DataConfig
from sft_rl.data.deep_colours import in_8_bits

Array = np.ndarray
FORMATS = (
    "PNG", "JPEG", "MPO", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "TGA", "AVIF"
)  # fmt: skip
"""What is decoded; others of Pillow's start programs, or are no pictures."""
BACKGROUND = (255, 255, 255)
"""White, under transparent pixels."""
ORIENTATION = 0x0112
"""The tag of Exif that says how a camera was held."""


def formats() -> list[str]:
    """Those of `FORMATS` that this Pillow reads."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def endings() -> frozenset[str]:
    """Ends of the names of pictures, in small letters."""
    from PIL import Image

    known = formats()
    return frozenset(end for end, name in Image.registered_extensions().items() if name in known)


def decoded(content: bytes, config: DataConfig) -> tuple[Array, list[str]]:
    """Decode, turn as the camera was held, crop, convert and scale a picture.

    Sixteen bits are scaled to eight, transparent pixels lie on white, of an animation the first
    picture is taken.

    Returns:
        uint8, shape (channels, size, size); and names of what had to be converted.

    Raises:
        ValueError: If it is not square, or its pixel values have no known range.
        Exception: Whatever a damaged picture makes its decoder raise.
    """
    from PIL import Image, ImageOps

    found: list[str] = []
    picture = in_8_bits(lambda: Image.open(io.BytesIO(content), formats=formats()), found)
    if getattr(picture, "is_animated", False) and picture.format != "MPO":
        found.append("first of several pictures")
    if picture.getexif().get(ORIENTATION, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
        found.append("turned by Exif")
    picture = _in_colours(_cropped(picture, config), config.channels, found)
    size = config.image_size
    if picture.width != size:
        picture = picture.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=None)
    pixels = np.asarray(picture).reshape(size, size, -1)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), found


def _cropped(picture: Any, config: DataConfig) -> Any:
    """Cut the box of the settings out, and refuse what is not square then."""
    if config.crop is not None:
        left, top, right, bottom = config.crop
        if not (0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height):
            raise ValueError(
                f"data.crop {list(config.crop)} does not fit into {picture.width}x{picture.height}"
            )
        picture = picture.crop(config.crop)
    if picture.width != picture.height:
        raise ValueError(
            f"it is {picture.width}x{picture.height} pixels, not square; set data.crop"
        )
    return picture


def _in_colours(picture: Any, channels: int, found: list[str]) -> Any:
    """Convert to RGB or grey of 8 bits; `found` is told of what is not plain."""
    from PIL import Image

    if picture.mode.startswith(("I", "F")):
        pixels, what = _to_bytes(picture)
        found.append(what)
        picture = Image.fromarray(pixels)
    elif picture.has_transparency_data:
        layers = picture.convert("RGBA")
        if layers.getextrema()[3][0] < 255:
            found.append("transparent, on white")
        picture = Image.alpha_composite(Image.new("RGBA", layers.size, BACKGROUND), layers)
    is_grey = picture.mode in ("1", "L")
    if is_grey and channels == 3:
        found.append("grey, in RGB")
    if not is_grey and channels == 1:
        found.append("colours, in grey")
    return picture.convert("RGB" if channels == 3 else "L")


def _to_bytes(picture: Any) -> tuple[Array, str]:
    """Scale pixels of 32 bits to 0..255."""
    values = np.asarray(picture, dtype=np.float64)
    low, high = values.min(), values.max()
    if picture.mode == "F" and low >= 0.0 and high <= 1.0:
        return np.rint(values * 255.0).astype(np.uint8), "floats of 0 to 1, scaled to 8 bits"
    raise ValueError(
        f"its pixels are {low:g} to {high:g} in mode {picture.mode!r}; write them as 8 or 16 bits, "
        "or floats of 0 to 1"
    )
