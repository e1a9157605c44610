"""Models of three kinds, DDPM, flow matching and EDM, each pretrained here and fine-tuned.

    python -m benchmarks.paths                     # seeds 0, 1, 2 at T = 4, one process, one thread
    python -m benchmarks.paths metrics.num_samples=2000 --preset glyphs16 --seeds 0

Writes a table of docs/your-own.md and ``benchmarks/results/paths_PRESET.json``. All start their few
steps from the levels that the preset chose for its DDPM: the times of other paths are those of
the same share of data in the latents. Numbers are of held-out data, strays from the swiss roll of
102,400 samples.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sft_rl
from benchmarks.digits import told
from benchmarks.machine import RESULTS, machine
from benchmarks.main_job import COLUMNS, FAR, over_seeds
from benchmarks.yardsticks import NUM_JUDGED, from_spiral
from sft_rl.config import Config
from sft_rl.diffusion.noise import path_of
from sft_rl.runs.parts import schedule_of

KINDS: dict[str, tuple[str, ...]] = {
    "DDPM, noise": (),
    "DDPM, v": ("model.prediction=v_prediction",),
    "DDPM, x_0": ("model.prediction=sample",),
    "flow matching, velocity": ("noise.path=flow", "model.prediction=flow"),
    "EDM": ("noise.path=ve", "model.prediction=edm"),
}
OF_EDM = {
    "swiss_roll": ["model.sigma_data=1.0"],
    "glyphs16": ["model.sigma_data=0.5", "noise.sigma_min=0.01", "noise.sigma_max=20"],
}
"""The data's standard deviation in model units, and levels: beyond 20 little is to be learned of
small pictures, where sigmas up to EDM's 80 take half of the training."""
FAR_SIGMAS = dict(zip(FAR, (4.0, 10.0), strict=True))
PICTURES = ("frechet_inf", "precision", "recall")


def config_of(
    preset: str, kind: str, own: list[str] | None = None, *, num_steps: int, seed: int
) -> Config:
    """The preset for a kind of model, its few steps from the same levels as the DDPM's."""
    fixed = [f"sampler.num_steps={num_steps}", f"seed={seed}", "rollout.num_workers=0"]
    plain = sft_rl.load_config(preset, fixed)
    settings = [*fixed, *KINDS[kind], *(OF_EDM[preset] if kind == "EDM" else []), *(own or [])]
    levels = schedule_of(plain).alpha_bar
    path = path_of(sft_rl.load_config(preset, settings).noise)
    times = np.maximum(path.timestep_of(levels), 0.0)  # one path may end nearer to the data
    return sft_rl.load_config(preset, [*settings, f"sampler.timesteps={times.tolist()}"])


def run_once(config: Config) -> dict[str, Any]:
    """Pretrain if the cache has no such model, fine-tune; return the summary with CPU seconds."""
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        result = sft_rl.fine_tune(config, out=Path(folder) / "run", observer=None)
        seconds = time.process_time() - begun
        kept = {when: result.metrics[when] for when in ("before", "final", "full_step")}
        if config.preset == "swiss_roll":
            distance, _ = from_spiral(result.sampler.sample(NUM_JUDGED, seed=1))
            kept |= {name: float((distance > far).mean()) for name, far in FAR_SIGMAS.items()}
    return {**kept, "cpu_seconds": seconds}


def row(name: str, runs: list[dict[str, Any]], when: str) -> str:
    """A line of the table: means over the seeds with their standard errors."""
    are_pictures = PICTURES[0] in runs[0][when]
    if are_pictures and len(runs) == 1:
        cells = [told(runs[0][when], column) for column in PICTURES]
    else:
        columns = PICTURES if are_pictures else COLUMNS
        cells = [over_seeds([run[when][column] for run in runs], 4) for column in columns]
    if not are_pictures:
        far = [over_seeds([100.0 * run[column] for run in runs], 1) + " %" for column in FAR]
        cells += far if when == "final" else [""] * len(FAR)
    return " | ".join(["", name, *cells, ""]).strip()


def main() -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--preset", choices=OF_EDM, default="swiss_roll")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num-steps", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    kept: dict[str, list[dict[str, Any]]] = {}
    columns = (*COLUMNS, "> 4 sigma", "> 10 sigma") if args.preset == "swiss_roll" else PICTURES
    print("| model | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for kind in args.kinds:
        configs = [
            config_of(args.preset, kind, args.settings, num_steps=args.num_steps, seed=seed)
            for seed in args.seeds
        ]
        runs = kept[kind] = [run_once(config) for config in configs]
        for when, name in (("before", "pretrained"), ("final", "fine-tuned")):
            print(row(f"{kind}, {args.num_steps} steps, {name}", runs, when), flush=True)
        print(row(f"{kind}, all steps", runs, "full_step"), flush=True)
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": machine(), "num_steps": args.num_steps, "runs": kept}
    (RESULTS / f"paths_{args.preset}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
