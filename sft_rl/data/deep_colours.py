"""Colours of 16 bits, of which Pillow keeps the upper 8 without a word: read whole, then scaled."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray
BITS_PER_SAMPLE = 258
"""The tag of TIFF that says how many bits each colour has."""
SIXTEEN = re.compile(r"(RGB|RGBA|RGBX|CMYK|LA);16([BLN])")
"""Pillow's names of such layouts in a file: the big, the little or the machine's end first."""
OTHER_END = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def in_8_bits(opened: Callable[[], Any], found: list[str]) -> Any:
    """Open a picture; one whose colours have 16 bits is scaled to 8, to the nearest value.

    Args:
        opened: Opens the picture, anew at each call.
        found: Is told of a scaled one.

    Returns:
        The picture as opened, or a new one in 8 bits.

    Raises:
        ValueError: If its colours lie in the file in an order that is not read.
    """
    from PIL import Image

    picture = opened()
    if (values := _all_bits(opened, picture)) is None:
        return picture
    found.append("16 bits, scaled to 8")
    mode = "L" if values.shape[-1] == 1 else picture.mode
    pixels = np.rint(values / 257.0).astype(np.uint8)
    if (clear := picture.info.get("transparency")) is not None:  # a colour, in 16 bits
        alpha = np.where((values == clear).all(-1), 0, 255).astype(np.uint8)
        pixels, mode = np.dstack([pixels, alpha]), f"{mode}A"
    scaled = Image.frombytes(mode, picture.size, pixels.tobytes())
    scaled.info["exif"] = picture.getexif().tobytes()
    return scaled


def _all_bits(opened: Callable[[], Any], picture: Any) -> Array | None:
    """Values of a picture of 16 bits, 0..65535, shape (height, width, channels); None of others.

    Of colours Pillow decodes the upper bytes. Decoded as if the bytes of each number were swapped,
    the file gives the lower ones.
    """
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):
        grey: Array = np.asarray(picture)
        return grey[..., None]
    match = SIXTEEN.fullmatch(_layout(picture.tile[0])) if picture.tile else None
    if match is None:
        if (bits := _tiff_bits(picture)) > 8 and picture.mode not in ("I", "F"):
            raise ValueError(f"its colours have {bits} bits in an order that is not read")
        return None
    if match[1] == "LA":
        both = np.asarray(_laid_out(opened(), "RGBA"))  # four bytes: two of grey, two of alpha
        upper, lower = both[..., [0, 0, 0, 2]], both[..., [1, 1, 1, 3]]
    else:
        upper = np.asarray(picture)
        lower = np.asarray(_laid_out(opened(), f"{match[1]};16{OTHER_END[match[2]]}"))
    values: Array = upper.astype(np.int32) * 256 + lower
    return values


def _layout(tile: Any) -> str:
    """Pillow's name of how the pixels of a tile lie in the file."""
    return str(tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args)


def _laid_out(picture: Any, layout: str) -> Any:
    """Let a picture be decoded as if its pixels lay otherwise."""
    picture.tile = [
        tile._replace(args=(layout, *tile.args[1:]) if isinstance(tile.args, tuple) else layout)
        for tile in picture.tile
    ]
    return picture


def _tiff_bits(picture: Any) -> int:
    return int(max(getattr(picture, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,))))
