"""The swiss roll from models of three kinds: DDPM, flow matching and EDM, each pretrained here.

    python -m benchmarks.paths                     # seed 0 at T = 4, one process, one thread

Writes the table of docs/your-own.md and ``benchmarks/results/paths.json``. All start their few
steps from the levels that the preset chose for its DDPM: the times of other paths are those of
the same share of data in the latents. Numbers are of held-out data.
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
from benchmarks.machine import RESULTS, machine
from sft_rl.config import Config
from sft_rl.diffusion.noise import path_of
from sft_rl.runs.parts import schedule_of

KINDS: dict[str, dict[str, Any]] = {
    "DDPM, noise": {},
    "DDPM, v": {"model.prediction": "v_prediction"},
    "DDPM, x_0": {"model.prediction": "sample"},
    "flow matching, velocity": {"noise.path": "flow", "model.prediction": "flow"},
    "EDM": {"noise.path": "ve", "model.prediction": "edm", "model.sigma_data": 1.0},
}
COLUMNS = ("two_sample", "excess", "precision", "recall")


def config_of(kind: str, *, num_steps: int, seed: int) -> Config:
    """The preset for a kind of model, its few steps from the same levels as the DDPM's."""
    fixed: dict[str, Any] = {"sampler.num_steps": num_steps, "seed": seed, "rollout.num_workers": 0}
    plain = sft_rl.load_config("swiss_roll", fixed)
    settings = {**fixed, **KINDS[kind]}
    levels = schedule_of(plain).alpha_bar
    path = path_of(sft_rl.load_config("swiss_roll", settings).noise)
    times = np.maximum(path.timestep_of(levels), 0.0)  # one path may end nearer to the data
    return sft_rl.load_config("swiss_roll", {**settings, "sampler.timesteps": times.tolist()})


def run_once(config: Config) -> dict[str, Any]:
    """Pretrain if the cache has no such model, fine-tune; return the summary with CPU seconds."""
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        result = sft_rl.fine_tune(config, out=Path(folder) / "run", observer=None)
    return {**result.metrics, "cpu_seconds": time.process_time() - begun}


def cell(numbers: dict[str, Any], column: str) -> str:
    """One number with its standard error."""
    return f"{numbers[column]:.4f} ± {numbers[f'{column}_se']:.4f}"


def main() -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--num-steps", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    kept: dict[str, list[dict[str, Any]]] = {}
    print("| model | seed | sampler | " + " | ".join(COLUMNS) + " |\n|---|---|---|" + "---|" * 4)
    for kind in args.kinds:
        for seed in args.seeds:
            run = run_once(config_of(kind, num_steps=args.num_steps, seed=seed))
            kept.setdefault(kind, []).append(run)
            for name, numbers in (
                (f"{args.num_steps} steps, pretrained", run["before"]),
                (f"{args.num_steps} steps, fine-tuned", run["final"]),
                ("all steps", run["full_step"]),
            ):
                cells = " | ".join(cell(numbers, column) for column in COLUMNS)
                print(f"| {kind} | {seed} | {name} | {cells} |", flush=True)
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": machine(), "num_steps": args.num_steps, "runs": kept}
    (RESULTS / "paths.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
