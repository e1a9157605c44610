"""Pictures are converted rightly, decoded once, and held once."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import RNG, SIZE, encoded, everything, load, put
from PIL import Image

from sft_rl.config import DataConfig
from sft_rl.data import load_dataset
from sft_rl.data.images import ImageDataset
from sft_rl.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")


def gradient(top: float, dtype: Any) -> np.ndarray:
    return (np.linspace(0, top, SIZE * SIZE).reshape(SIZE, SIZE)).astype(dtype)


GREY = np.rint(gradient(255, float)).astype(np.uint8)
CLEAR = np.dstack([np.full((SIZE, SIZE, 3), 77, np.uint8), GREY])
"""Grey that is hidden at the beginning and shows at the end."""
ON_WHITE = np.rint(255 - (255 - 77) * (GREY / 255))


def indexed() -> Image.Image:
    picture = Image.fromarray(np.full((SIZE, SIZE), 1, np.uint8), "P")
    picture.putpalette([9, 9, 9, 50, 60, 70])
    return picture


def upside_down() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 3
    return exif


RED = np.array([255, 0, 0])[:, None, None]
CONVERTED: dict[str, tuple[bytes, Any, str]] = {
    "16 bits": (encoded(gradient(65535, np.uint16)), GREY, "16 bits, scaled to 8"),
    "16 bits of TIFF": (
        encoded(gradient(65535, np.uint16), "tiff"),
        GREY,
        "16 bits, scaled to 8",
    ),
    "floats of TIFF": (
        encoded(gradient(1, np.float32), "tiff"),
        GREY,
        "floats of 0 to 1, scaled to 8 bits",
    ),
    "transparent": (encoded(CLEAR), ON_WHITE, "transparent, on white"),
    "transparent by index": (encoded(indexed(), transparency=1), 255, "transparent, on white"),
    "with a transparent colour": (
        encoded(np.full((SIZE, SIZE, 3), 7, np.uint8), transparency=(7, 7, 7)),
        255,
        "transparent, on white",
    ),
    "by index": (encoded(indexed()), np.array([50, 60, 70])[:, None, None], ""),
    "black and white": (encoded(Image.fromarray(GREY > 99)), 255 * (GREY > 99), "grey, in RGB"),
    "CMYK": (encoded(Image.new("CMYK", (SIZE, SIZE), (0, 255, 255, 0)), "tiff"), RED, ""),
    "held upside down": (encoded(GREY, exif=upside_down()), GREY[::-1, ::-1], "turned by Exif"),
    "moving": (
        encoded(
            Image.fromarray(GREY),
            "gif",
            save_all=True,
            append_images=[Image.new("L", (SIZE, SIZE))],
        ),
        GREY,
        "first of several pictures",
    ),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_pictures_are_converted_rightly(tmp_path: Path, name: str):
    content, expected, said = CONVERTED[name]
    for i in range(4):
        put(tmp_path / "pictures" / f"{i}.png", content)  # whatever it is
    data = load(tmp_path / "pictures")
    found = everything(data)
    assert np.abs(found.astype(float) - expected).max() <= 1
    assert said in data.description.get("converted", "")


def png_of_16_bits(values: np.ndarray, **chunks: bytes) -> bytes:
    """A PNG as its specification says, which Pillow does not write: (size, size, 2 to 4)."""

    def chunk(name: bytes, content: bytes) -> bytes:
        whole = name + content
        return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))

    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[-1]]
    header = struct.pack(">IIBBBBB", SIZE, SIZE, 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [(b"IHDR", header), *((n.encode(), c) for n, c in chunks.items())]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff_of_16_bits(
    values: np.ndarray, order: str, *, packed: bool = False, planes: int = 1
) -> bytes:
    """A TIFF as its specification says: (size, size, 3)."""
    end = {"II": "<", "MM": ">"}[order]
    pixels = values.astype(f"{end}u2").tobytes()
    pixels = zlib.compress(pixels) if packed else pixels
    numbers = {256: SIZE, 257: SIZE, 259: 8 if packed else 1, 262: 2, 277: 3, 278: SIZE}
    tags = {
        tag: struct.pack(f"{end}HIHH", 3, 1, n, 0) for tag, n in (numbers | {284: planes}).items()
    }
    bits = 8 + 2 + 12 * (len(tags) + 3) + 4  # where they lie, and behind them the pixels
    tags[258] = struct.pack(f"{end}HII", 3, 3, bits)
    tags[273] = struct.pack(f"{end}HII", 4, 1, bits + 6)
    tags[279] = struct.pack(f"{end}HII", 4, 1, len(pixels))
    head = order.encode() + struct.pack(f"{end}HIH", 42, 8, len(tags))
    table = b"".join(struct.pack(f"{end}H", tag) + tags[tag] for tag in sorted(tags))
    return head + table + bytes(4) + struct.pack(f"{end}3H", 16, 16, 16) + pixels


DEEP = RNG.integers(0, 2**16, (SIZE, SIZE, 4))
ALPHA = DEEP[..., 3:] / 65535
CLEAR_COLOUR = struct.pack(">3H", *DEEP[0, 0, :3])
DEEP_PICTURES: dict[str, tuple[bytes, np.ndarray]] = {
    "PNG": (png_of_16_bits(DEEP[..., :3]), DEEP[..., :3]),
    "PNG with a transparent colour": (
        png_of_16_bits(DEEP[..., :3], tRNS=CLEAR_COLOUR),
        np.where((DEEP[0, 0] == DEEP).all(-1, keepdims=True), 65535, DEEP[..., :3]),
    ),
    "PNG with alpha": (png_of_16_bits(DEEP), 65535 - (65535 - DEEP[..., :3]) * ALPHA),
    "grey PNG with alpha": (
        png_of_16_bits(DEEP[..., [0, 3]]),
        65535 - (65535 - DEEP[..., [0, 0, 0]]) * ALPHA,
    ),
    **{
        f"TIFF {order}{' packed' * packed}": (
            tiff_of_16_bits(DEEP[..., :3], order, packed=packed),
            DEEP[..., :3],
        )
        for order in ("II", "MM")
        for packed in (False, True)
    },
}


@pytest.mark.parametrize("name", DEEP_PICTURES)
def test_colours_of_16_bits_are_scaled_to_the_nearest(tmp_path: Path, name: str):
    content, expected = DEEP_PICTURES[name]
    for i in range(4):
        put(tmp_path / "pictures" / f"{i}.png", content)  # whatever it is
    data = load(tmp_path / "pictures")
    nearest = np.rint(expected / 257).transpose(2, 0, 1)
    allowed = 1 if "alpha" in name else 0  # where it is laid on white, in 8 bits
    assert np.abs(everything(data) - nearest).max() <= allowed
    assert "16 bits, scaled to 8" in data.description["converted"]


def test_planes_of_16_bits_are_refused(tmp_path: Path):
    for i in range(4):
        put(tmp_path / f"{i}.tiff", tiff_of_16_bits(DEEP[..., :3], "II", planes=2))
    with pytest.raises(UserError, match="its colours have 16 bits in an order that is not read"):
        load(tmp_path)


def test_pixels_of_no_known_range_are_refused(tmp_path: Path):
    for i, values in enumerate((gradient(4000, np.float32), gradient(1e6, np.int32))):
        for j in range(4):
            put(tmp_path / str(i) / f"{j}.tiff", encoded(values, "tiff"))
        with pytest.raises(UserError, match=r"0.tiff: its pixels are 0 to .* write them as 8"):
            load(tmp_path / str(i))


def test_pictures_are_decoded_once(tmp_path: Path, cache: Path):
    files = [put(tmp_path / "pictures" / f"{i}.png") for i in range(6)]
    seen: list[tuple[int, int]] = []
    config = DataConfig(name="images", path=str(tmp_path / "pictures"), image_size=SIZE)

    def read(**changes: Any) -> ImageDataset:
        seen.clear()
        return load_dataset(
            config.model_copy(update=changes), lambda done, total, _: seen.append((done, total))
        )

    first = read()
    assert seen == [(6, 6)]
    again = read()
    assert seen == []
    assert isinstance(again.held_out, np.memmap)
    np.testing.assert_array_equal(everything(again), everything(first))
    assert (again.fingerprint, again.description) == (first.fingerprint, first.description)
    for changes in ({"channels": 1}, {"crop": (0, 0, 4, 4)}, {"seed": 1}):
        assert read(**changes).fingerprint != first.fingerprint
        assert seen == [(6, 6)]
    stamp = files[0].stat()
    files[0].write_bytes(files[1].read_bytes())
    os.utime(files[0], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert read().fingerprint != first.fingerprint, "the content counts, not its date"
    assert len(list((cache / "pictures").glob("[!.]*"))) == 5


MEASURE = """
import resource, sys
from sft_rl.config import DataConfig
from sft_rl.data import load_dataset
import sft_rl.data.images, pyarrow.parquet, PIL.Image
PIL.Image.init()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
data = load_dataset(DataConfig(name="images", path=sys.argv[1], image_size=64))
held = data.train.numel() + data.held_out.size
print(before, peak(), held)
"""


def test_memory_at_the_peak_is_that_of_the_pictures(tmp_path: Path):
    """Of a load that decodes, and of one that finds them decoded."""
    picture = encoded(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), "jpeg", quality=60)
    column = pa.array([picture] * 6_000)  # 74 MB of pixels
    pq.write_table(pa.table({"image": column}), tmp_path / "many.parquet", row_group_size=500)
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path / "many.parquet")],
            capture_output=True,
            text=True,
            check=True,
        )
        before, peak, held = map(int, done.stdout.split())
        assert held == 6_000 * 3 * 64 * 64
        assert peak - before <= 1.3 * held
