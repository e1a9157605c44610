"""Glyphs by steps, before and after fine-tuning: distances, and the share that can be read.

    python -m benchmarks.glyphs                  # T = 10, 4, 2 with seed 0
    python -m benchmarks.glyphs --seeds 0 1 2

A classifier of the same kind as the metrics', but trained from another seed, reads 2,000 pictures;
one counts as read if its class has a probability above 0.9, whichever it is, and as right if it is
the one asked for. Prints a table with standard errors, writes ``benchmarks/results/glyphs.json``
after every run, and draws the same noise before, after and with many steps into
``docs/images/glyphs_samples_T*.png`` for the first seed.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.digits import PICTURES, told
from benchmarks.machine import RESULTS, machine
from benchmarks.watch import watched_train
from sft_rl.data import Dataset
from sft_rl.data.images import ImageDataset
from sft_rl.data.pictures import tile, to_rgb
from sft_rl.diffusion.noise import path_of
from sft_rl.diffusion.prediction import Prediction
from sft_rl.diffusion.schedule import spread_steps
from sft_rl.export.sampler import sampler_of
from sft_rl.metrics.classifier import Classifier, cached_classifier
from sft_rl.policy import DenoisingPolicy
from sft_rl.runs.parts import data_of, full_step_network, policy_of
from sft_rl.runs.remote import open_run
from sft_rl.seeding import generator

Array = np.ndarray
CONFIDENCE = 0.9
MANY = 100
COLUMNS, ROWS = 16, 3
READER_SEED, NUM_READ = 1, 2000


@torch.inference_mode()
def read_shares(
    classifier: Classifier, data: Dataset, images: Array, labels: Tensor
) -> tuple[float, float]:
    """Shares of images (N, C, H, W), uint8, that the classifier is sure of, and that it names."""
    parts = torch.split(data.units.to_model(torch.from_numpy(images)), 1000)
    sure, named = torch.cat([classifier(part).softmax(dim=1) for part in parts]).max(dim=1)
    return (sure > CONFIDENCE).double().mean().item(), (named == labels).double().mean().item()


def samplers_of(folder: Path, num_many: int) -> tuple[dict[str, DenoisingPolicy], Dataset]:
    """The samplers of a run, before, after and of the full-step network; and its data."""
    store = open_run(folder)
    config, data = store.config, data_of(store.config)
    network, _ = full_step_network(config, data, progress=lambda *_: None)
    many = spread_steps(path_of(config.noise), num_many, Prediction.from_config(config.model))
    classes = config.model.num_classes
    return {
        "before": policy_of(config, copy.deepcopy(network)),
        "after": sampler_of(store).policy,
        f"{num_many} steps": DenoisingPolicy(network, many, shape=data.shape, num_classes=classes),
    }, data


def draw(policy: DenoisingPolicy, data: Dataset, labels: Tensor) -> Array:
    """Draw images, uint8, of labels (N,), from noise that depends on their number alone."""
    return data.units.to_data(policy.sample(len(labels), generator(0, "benchmark"), labels))


def run_once(
    num_steps: int,
    seed: int,
    *,
    settings: list[str],
    picture: Path | None,
    many: dict[str, Array],
    preset: str = "glyphs16",
    num_read: int = NUM_READ,
) -> Any:
    """Run the command; measure what can be read; return what is worth keeping.

    Images of many steps, which all runs share, are drawn into `many` by the first.
    """
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        own = [*settings, f"sampler.num_steps={num_steps}", f"seed={seed}"]
        memory = watched_train(preset, own, out)
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
        looked = looked_at(out, picture=picture, many=many, num_read=num_read)
    return {
        "num_steps": num_steps,
        "seed": seed,
        **{name: summary[name] for name in ("before", "final", "full_step", "protocol")},
        **looked,
        "seconds": summary["wall_seconds"],
        "megabytes": round(memory.driver),
    }


def looked_at(
    out: Path, *, picture: Path | None, many: dict[str, Array], num_read: int
) -> dict[str, Any]:
    """Let a classifier read pictures of a run's samplers; show the first of them.

    Args:
        out: The run's folder.
        picture: Where they are shown, of the same noise; None shows none.
        many: Images of many steps, which runs share, are drawn into it by the first.
        num_read: How many are read.
    """
    samplers, data = samplers_of(out, MANY)
    assert isinstance(data, ImageDataset) and data.held_out is not None
    classifier, accuracy = cached_classifier(data, seed=READER_SEED)
    assert data.held_out_labels is not None
    read = {"data": read_shares(classifier, data, data.held_out, data.held_out_labels)}
    labels, shown = torch.arange(num_read) % len(data.classes), []
    for name, policy in samplers.items():
        images = many[name] if name in many else draw(policy, data, labels)
        if policy.num_steps == MANY:
            many[name] = images
        read[name] = read_shares(classifier, data, images, labels)
        shown.append(to_rgb(images[: COLUMNS * ROWS], 0, data.pixel_max))
    if picture is not None:
        grid = np.concatenate([tile(images, COLUMNS) for images in shown])
        Image.fromarray(grid.repeat(2, 0).repeat(2, 1)).save(picture, optimize=True)
    return {"read": read, "reader_accuracy": accuracy, "num_read": num_read}


def table(runs: list[dict[str, Any]]) -> str:
    """Lay the runs out, as Markdown."""
    lines = [
        "| steps | seed | sampler | frechet_inf | precision | recall | read | right "
        "| fine-tuning s | MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        rows = (("before", "before"), ("after", "final"), (f"{MANY} steps", "full_step"))
        for name, part in rows:
            if "frechet_inf" not in run[part]:  # metrics.full_step=off
                continue
            cells = [told(run[part], metric) for metric in ("frechet_inf", "precision", "recall")]
            for share in run["read"][name]:
                error = math.sqrt(share * (1 - share) / run["num_read"])
                cells.append(f"{share:.3f} ± {error:.3f}")
            lines.append(
                f"| {run['num_steps']} | {run['seed']} | {name} | {' | '.join(cells)} "
                f"| {run['seconds']['fine-tuning']:.0f} | {run['megabytes']} |"
            )
    first = runs[0]
    lines.append(
        f"\nOf held-out data {first['read']['data'][0]:.3f} are read; the reader names "
        f"{first['reader_accuracy']:.1%} of them rightly."
    )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 4, 2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--pictures", type=Path, default=PICTURES)
    args = parser.parse_args(arguments)
    runs: list[Any] = []
    many: dict[str, Array] = {}
    for seed in args.seeds:
        for steps in args.steps:
            is_first = seed == args.seeds[0]
            picture = args.pictures / f"glyphs_samples_T{steps}.png" if is_first else None
            run = run_once(steps, seed, settings=args.settings, picture=picture, many=many)
            runs.append(run)
            content = json.dumps({"machine": machine(), "runs": runs}, indent=1)
            (args.results / "glyphs.json").write_text(content + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
