"""Sets of CelebA's size: memory and time of decoding them, and of measuring 50,000 samples.

    python -m benchmarks.large_sets                        # 200,000 pictures of 64x64 in a zip file
    python -m benchmarks.large_sets --num 20000 --size 16 --measured 5000

Draws pictures into a zip file, reads it in a process of its own, twice: once decoding, once from
the cache; then measures as many samples against as many training images. Peaks are those of the
process beyond its imports: of all its memory, to which pages of the mapped cache count, and of
what is its own. Writes ``benchmarks/results/large_sets_SIZE.json``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.machine import RESULTS, machine

CLASSES, DRAWN = 4, 2000
READ = """
import resource, sys, threading, time
import numpy as np, PIL.Image, sklearn, torch
from sft_rl.config import DataConfig, MetricsConfig
from sft_rl.data import load_dataset
from sft_rl.metrics.evaluation import Evaluator
PIL.Image.init()
torch.set_num_threads(1)
path, size, measured = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
peak = {"VmRSS": 0, "RssAnon": 0}

def memory():
    with open("/proc/self/status") as file:
        rows = dict(line.split(":", 1) for line in file)
    return {name: int(rows[name].split()[0]) // 1024 for name in peak}

def watch():
    while True:
        for name, value in memory().items():
            peak[name] = max(peak[name], value)
        time.sleep(0.05)

before = memory()
threading.Thread(target=watch, daemon=True).start()
data = load_dataset(DataConfig(name="images", path=path, image_size=size))
if measured:
    config = MetricsConfig(distance="frechet_inf", num_samples=measured, reference="train")
    evaluator = Evaluator(data, config)
    evaluator.measured(np.flip(data.train[:measured].numpy(), axis=-1).copy())
print({
    "all_mb": peak["VmRSS"] - before["VmRSS"],
    "own_mb": peak["RssAnon"] - before["RssAnon"],
    "cpu_seconds": round(time.process_time()),
    "held_mb": round((data.train.numel() + data.held_out.size) / 2**20),
})
"""


def draw(file: Path, num: int, size: int) -> None:
    """Write pictures of a gradient and a rectangle as PNG, in a folder for each class.

    Some thousands are drawn, and written again and again under other names.
    """
    source = np.random.default_rng(0)
    ramp = np.linspace(0, 60, size, dtype=np.uint8)[None, :, None]
    drawn = []
    for _ in range(DRAWN):
        pixels = np.broadcast_to(ramp, (size, size, 3)) + source.integers(0, 90, 3, np.uint8)
        top, left = source.integers(0, size // 2, 2)
        pixels[top : top + size // 4, left : left + size // 3] = source.integers(0, 256, 3)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "png", compress_level=1)
        drawn.append(stream.getvalue())
    with zipfile.ZipFile(file, "w") as archive:
        for i in range(num):
            archive.writestr(f"{i % CLASSES}/{i:06d}.png", drawn[i % DRAWN])


def read(file: Path, size: int, *, measured: int, cache: Path) -> dict[str, int]:
    """Read the pictures, and measure some, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(file), str(size), str(measured)],
        env={**os.environ, "SFT_RL_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, int] = json.loads(done.stdout.replace("'", '"'))
    return found


def main() -> None:
    """Draw, read twice, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--num", type=int, default=200_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--measured", type=int, default=50_000, help="samples; 0 measures none")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file, cache = Path(folder) / "pictures.zip", Path(folder) / "cache"
        draw(file, given.num, given.size)
        runs = {}
        for name in ("decoded", "cached", *(("measured",) if given.measured else ())):
            measured = given.measured if name == "measured" else 0
            runs[name] = read(file, given.size, measured=measured, cache=cache)
            print(name, runs[name], flush=True)
    result = {"machine": machine(), "arguments": vars(given), "runs": runs}
    (RESULTS / f"large_sets_{given.size}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
