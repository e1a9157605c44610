"""A model of denoising-diffusion-pytorch, by its own trainer, and what fine-tuning makes of it.

    pip install denoising-diffusion-pytorch     # with the torchvision that goes with your torch
    python -m benchmarks.lucidrains             # 10,000 glyphs of 16x16, 2,000 steps, then T = 4

Draws glyphs into a folder for each character, lets that package's ``Trainer`` train its ``Unet``
on them, and hands its checkpoint to ``examples/lucidrains.py``. Prints the distances before and
after, and of 100 steps of the network; pictures and checkpoint stay in the folder of `--out`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from PIL import Image
from torch import nn

from benchmarks.digits import told
from benchmarks.machine import machine
from examples import lucidrains
from sft_rl.config import DataConfig
from sft_rl.data.images import load_images

SIZE, CHARACTERS = 16, "0123456789"
DIM, MULTS = 32, (1, 2, 2)
BATCH = 64
COLUMNS = ("frechet_inf", "precision", "recall")


def unet() -> nn.Module:
    """The network, with the checkpoint's weights where there is one."""
    return lucidrains.averaged(_network())


def _network() -> nn.Module:
    from denoising_diffusion_pytorch import Unet

    network: nn.Module = Unet(dim=DIM, dim_mults=MULTS, attn_dim_head=16)
    return network


def draw(folder: Path, num: int) -> None:
    """Write glyphs as PNG, a folder for each character."""
    data = load_images(
        DataConfig(name="glyphs", image_size=SIZE, characters=CHARACTERS, num_points=num)
    )
    assert data.labels is not None
    for number, (pixels, label) in enumerate(zip(data.train.numpy(), data.labels, strict=True)):
        place = folder / CHARACTERS[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(place / f"{number:05}.png")


def train(folder: Path, results: Path, num_steps: int) -> Path:
    """Let the package's trainer train its network of v; return its checkpoint."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer

    trainer = Trainer(
        GaussianDiffusion(_network(), image_size=SIZE, objective="pred_v"),
        str(folder),
        train_batch_size=BATCH,
        train_lr=1e-3,
        train_num_steps=num_steps,
        save_and_sample_every=num_steps,
        augment_horizontal_flip=False,
        num_samples=16,
        results_folder=str(results),
        calculate_fid=False,
    )
    trainer.train()
    return results / "model-1.pt"


def main(arguments: list[str] | None = None) -> None:
    """Draw, train by the package, fine-tune here, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--num", type=int, default=10_000)
    parser.add_argument("--num-steps", type=int, default=2_000)
    parser.add_argument("--out", type=Path, default=Path("runs/lucidrains"))
    args = parser.parse_args(arguments)
    pictures = args.out / "pictures"
    draw(pictures, args.num)
    begun = time.process_time()
    checkpoint = train(pictures, args.out / "trainer", args.num_steps)
    seconds = time.process_time() - begun
    result = lucidrains.main(
        str(pictures),
        str(checkpoint),
        "model.factory=benchmarks.lucidrains:unet",
        f"data.image_size={SIZE}",
        "metrics.distance=frechet_inf",
        *args.settings,
    )
    print(f"| sampler | {' | '.join(COLUMNS)} |\n|---|" + "---|" * len(COLUMNS))
    for name, part in (("before", "before"), ("after", "final"), ("100 steps", "full_step")):
        if COLUMNS[0] in result.metrics[part]:  # not of metrics.full_step=off
            cells = [told(result.metrics[part], column) for column in COLUMNS]
            print(f"| {name} | {' | '.join(cells)} |")
    mine = result.metrics["wall_seconds"]["fine-tuning"]
    print(f"{seconds:.0f} CPU s by the trainer, {mine:.0f} s of fine-tuning here")
    print(machine())


if __name__ == "__main__":
    main()
