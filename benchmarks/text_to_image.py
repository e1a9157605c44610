"""A text-to-image pipeline in, 4 steps out, by LoRA, a critic and a reward that reads digits.

    python -m examples.glyph_pipeline glyphs       # 12 CPU minutes; once
    python -m benchmarks.text_to_image glyphs
    python -m benchmarks.text_to_image glyphs --seeds 10 critic.width=64

A run a seed. A classifier of other pictures and weights than the reward's says how many samples
show the digit of their prompt, of 50 for each of the 40 prompts: before, after and with 50 steps.
Prints a table with standard errors, writes ``benchmarks/results/text_to_image.json`` after every
run, and draws the same prompts and noise by each sampler into
``docs/images/text_to_image.png`` for the first seed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.digits import PICTURES, told
from benchmarks.glyphs import samplers_of
from benchmarks.machine import RESULTS, machine
from benchmarks.watch import watched_train
from examples.glyph_pipeline import SIZE
from examples.reads_digit import reader
from sft_rl.data.images import PIXEL_MAX
from sft_rl.data.pictures import tile, to_rgb
from sft_rl.metrics.neighbours import share_error
from sft_rl.seeding import generator

SETTINGS = (
    "data.captions=caption",
    f"data.image_size={SIZE}",
    "data.channels=1",
    "prompts.metadata=[digit]",
    "sampler.num_steps=4",
    "sampler.guidance_scale=3",
    "sampler.start_time=800",
    "policy.lora.rank=16",
    "policy.learning_rate=5e-4",
    "training.num_iterations=150",
    "reward.terms=[critic, {use: 'examples.reads_digit:ReadsDigit', weight: 0.6}]",
    "metrics.distance=frechet_inf",
    "metrics.num_samples=2000",
    "metrics.full_step=50",
)
MANY, OF_EACH = 50, 50
SHOWN = ("thin", "left"), ("thick", "right")


def run_once(folder: Path, seed: int, settings: list[str], picture: Path | None) -> dict[str, Any]:
    """Run the command; read the samples of each prompt; return what is worth keeping."""
    own = [
        f"pretrained.path={folder / 'pipeline'}",
        f"data.path={folder / 'pictures.parquet'}",
        f"prompts.path={folder / 'prompts.csv'}",
        *(*SETTINGS, f"seed={seed}", *settings),
    ]
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        memory = watched_train("images", own, out)
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
        samplers, data = samplers_of(out, MANY)
    prompts = data.units.samples.prompts
    assert prompts is not None
    digits = torch.tensor([row["digit"] for row in prompts.metadata])
    labels = torch.arange(len(digits)).repeat_interleave(OF_EACH)
    classifier, accuracy = reader(seed=1)
    read, rows = {}, []
    for name, policy in samplers.items():
        with torch.inference_mode():
            latents = policy.sample(len(labels), generator(0, "benchmark"), labels)
        images = data.units.to_data(latents)
        found = classifier.classes_of(torch.from_numpy(images), data.units)
        read[name] = float((found == digits[labels].numpy()).mean())
        rows.append(images.reshape(len(digits), OF_EACH, *images.shape[1:])[:, 0])
    if picture is not None:
        Image.fromarray(_grid(prompts.texts, rows)).save(picture, optimize=True)
    return {
        "seed": seed,
        **{name: summary[name] for name in ("before", "final", "full_step", "protocol")},
        "read": read,
        "reader_accuracy": accuracy,
        "seconds": summary["wall_seconds"],
        "megabytes": round(memory.driver),
    }


def _grid(texts: tuple[str, ...], rows: list[np.ndarray]) -> np.ndarray:
    """Two rows of ten digits for each sampler, thin ones leaning left, thick ones right."""
    shown = [
        [i for i, text in enumerate(texts) if all(word in text for word in words)]
        for words in SHOWN
    ]
    digits = np.concatenate([np.concatenate([images[own] for own in shown]) for images in rows])
    return tile(to_rgb(digits, 0, PIXEL_MAX), len(shown[0])).repeat(3, 0).repeat(3, 1)


def table(runs: list[dict[str, Any]]) -> str:
    """Lay the runs out, as Markdown."""
    names = ("frechet_inf", "precision", "recall")
    lines = [
        f"| seed | sampler | prompts read | {' | '.join(names)} | fine-tuning s | MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        rows = (("before", "before"), ("after", "final"), (f"{MANY} steps", "full_step"))
        for name, part in rows:
            share = run["read"][name]
            error = share_error(share, OF_EACH * 40) / 2**0.5
            cells = [f"{share:.3f} ± {error:.3f}", *(told(run[part], metric) for metric in names)]
            lines.append(
                f"| {run['seed']} | {name} | {' | '.join(cells)} "
                f"| {run['seconds']['fine-tuning']:.0f} | {run['megabytes']} |"
            )
    lines.append(f"\nThe reader names {runs[0]['reader_accuracy']:.1%} of real digits rightly.")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--pictures", type=Path, default=PICTURES)
    args = parser.parse_args()
    runs = []
    for seed in args.seeds:
        picture = args.pictures / "text_to_image.png" if seed == args.seeds[0] else None
        runs.append(run_once(args.folder.resolve(), seed, args.settings, picture))
        content = json.dumps({"machine": machine(), "runs": runs}, indent=1)
        (args.results / "text_to_image.json").write_text(content + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
