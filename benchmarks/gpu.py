"""One GPU: is it right, what does each setting give over a plain float32 loop, does it learn.

    python -m benchmarks.gpu                # checks and speed; needs no Ray and no data
    python -m benchmarks.gpu --minutes 8    # then trains `glyphs32` to 4 steps in what is left
    python -m benchmarks.gpu --tiny --minutes 0    # on any machine, with tiny networks

First `benchmarks.gpu_checks`: a deviation above its tolerance is told, and the exit code is 1.

Then speed. Networks have the size of the preset ``cifar10`` and random weights, and the data are
noise: speed depends on neither. Rows add one setting after another to torch's defaults, under which
float32 convolutions are TF32 on recent GPUs. The share is that of the rate of a large bfloat16
matrix product, measured in the same process; operations are counted by torch's FlopCounterMode.

With ``--minutes`` a short run of `glyphs32` at T = 4 says how long iterations take, and one of as
many as fit gives distances before and after, and its peak memory beside what ``--dry-run`` counts.
Writes ``benchmarks/results/gpu.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_checks import TOLERANCES, deviations, failures
from benchmarks.machine import RESULTS, machine
from sft_rl.config import Samples
from sft_rl.config.files import load_config
from sft_rl.data import Dataset
from sft_rl.data.units import Units
from sft_rl.jobs.commands import train
from sft_rl.jobs.dry_run import dry_run
from sft_rl.learning.learner import Learner
from sft_rl.learning.protocols import Silent
from sft_rl.policy import DenoisingPolicy
from sft_rl.rollout.cuda_graphs import GraphedChain
from sft_rl.runs.parts import learner_of, network_of, networks_of, resolve_device
from sft_rl.runs.resolve import resolve
from sft_rl.types import Trajectories

TINY_UNET = {
    "block_out_channels": [4, 4],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "add_attention": False,
}
TINY = (f"model.unet={json.dumps(TINY_UNET)}", "sampler.num_steps=2", "critic.width=2")
NOISE = ("training.n_critic=1", "metrics.distance=sliced_wasserstein")
"""Data are noise, which has no labels."""
SETTINGS: dict[str, tuple[str, ...]] = {
    "float32 loop": (),
    "bfloat16": ("model.precision=bfloat16",),
    "and channels last": ("model.precision=bfloat16", "model.channels_last=true"),
    "and compiled": (
        "model.precision=bfloat16",
        "model.channels_last=true",
        "model.compile=true",
    ),
}
"""What is measured, and its settings."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        settings: Settings of the networks.
        batch: Samples drawn at once.
        chains: Trajectories of an update.
        matrix: Side of the matrices of the reference product.
        rounds: Timed repetitions, after one that is not.
        training: Settings of the run of `glyphs32`.
    """

    settings: tuple[str, ...] = ()
    batch: int = 512
    chains: int = 128
    matrix: int = 8192
    rounds: int = 10
    training: tuple[str, ...] = ()


TINY_SIZE = Size(
    TINY,
    batch=4,
    chains=2,
    matrix=64,
    rounds=1,
    training=(
        TINY[0],
        *("data.num_points=40", "noise.num_train_timesteps=20", "sampler.start_time=15"),
        *("training.batch_size=4", "training.n_critic=1", "critic.width=2", "value.width=2"),
        *("critic.num_warmup_steps=0", "pretraining.batch_size=4", "pretraining.num_times=4"),
        *("metrics.distance=sliced_wasserstein", "metrics.num_samples=10", "metrics.full_step=off"),
        "training.plots=false",
    ),
)


def seconds(work: Callable[[], Any], size: Size) -> float:
    """Median seconds of a call, with all it has started on the GPU."""
    times = []
    for _ in range(size.rounds + 1):
        begun = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return median(times[1:])


def operations(work: Callable[[], Any]) -> int:
    """Floating-point operations of a call, a multiplication and an addition each counted."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def matmul_rate(device: torch.device, size: Size) -> float:
    """Operations a second of one large bfloat16 matrix product."""
    n = size.matrix
    a, b = torch.randn(2, n, n, device=device, dtype=torch.bfloat16)
    return 2.0 * n**3 / seconds(lambda: a @ b, size)


def sampling(policy: DenoisingPolicy, batch: int) -> Callable[[], None]:
    """Draw a batch step by step."""
    source = torch.Generator(policy.device).manual_seed(0)

    @torch.inference_mode()
    def draw() -> None:
        start = torch.randn(batch, *policy.shape, generator=source, device=policy.device)
        for _ in policy.denoise(start, source):
            pass

    return draw


def graphed_sampling(policy: DenoisingPolicy, batch: int) -> Callable[[], None]:
    """Draw a batch by a CUDA graph, with its log-probs, as rollouts do."""
    chain = GraphedChain(policy, batch)
    source = torch.Generator(policy.device).manual_seed(0)

    def draw() -> None:
        start = torch.randn(batch, *policy.shape, generator=source, device=policy.device)
        chain(start, source)

    return draw


def new_learner(size: Size, settings: tuple[str, ...], device: torch.device) -> Learner:
    """A learner with random weights, and noise for data."""
    chains = (f"training.batch_size={size.chains}", f"pathwise.chains_per_update={size.chains}")
    config = load_config("cifar10", (*size.settings, *chains, *NOISE, *settings))
    shape = config.data.image_shape
    samples = Samples(shape=shape, shift=(0.0,), scale=(1.0,), fingerprint="noise")
    noise = Dataset(
        train=torch.randn(64, *shape), held_out=None, units=Units(samples), config=config.data
    )
    resolved, data = resolve(config, data=noise, fetch=False)
    networks = networks_of(resolved, network_of(resolved).to(device))
    return learner_of(resolved, networks, data)


def updates(learner: Learner, chains: int) -> Callable[[], Any]:
    """One policy step; FlopCounterMode cannot count a critic's gradient penalty."""
    policy = learner.networks.policy
    shape = (policy.num_steps + 1, chains, *policy.shape)
    latents = torch.randn(shape, device=policy.device)
    unused = latents.new_zeros(policy.num_steps, chains)
    trajectories = Trajectories(latents, unused, unused[:0], 0, expected=latents[1:])

    return lambda: learner.update_policy(trajectories, 0)


def measured(name: str, size: Size, device: torch.device) -> dict[str, float]:
    """Samples and policy steps a second with one of the settings."""
    learner = new_learner(size, SETTINGS[name], device)
    policy, num = learner.networks.policy, size.batch
    rates = {f"sampling, {name}": num / seconds(sampling(policy, num), size)}
    if name != "float32 loop":
        graphed = graphed_sampling(policy, num)
        rates[f"sampling, {name}, CUDA graph"] = num / seconds(graphed, size)
    rates[f"update, {name}"] = 1 / seconds(updates(learner, size.chains), size)
    return rates


def counted(size: Size, device: torch.device) -> dict[str, float]:
    """Operations of a sample and of an update; they are the same in every setting."""
    learner = new_learner(size, (), device)
    return {
        "sampling": float(operations(sampling(learner.networks.policy, 1))),
        "update": float(operations(updates(learner, size.chains))),
    }


def trained(iterations: dict[str, int], size: Size) -> dict[str, Any]:
    """Train `glyphs32` to 4 steps by so many iterations; return what is worth keeping."""
    fine_tuning = iterations["fine-tuning"]
    settings = (
        "sampler.num_steps=4",
        f"pretraining.num_iterations={iterations['pretraining']}",
        f"training.num_iterations={fine_tuning}",
        f"training.eval_every={fine_tuning}",
        *size.training,
    )
    config = load_config("glyphs32", settings)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as place:
        summary = train(config, Path(place) / "run", observer=Silent()).summary
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {
        **{name: summary[name] for name in ("before", "final", "full_step", "protocol")},
        "iterations": iterations,
        "seconds": summary["wall_seconds"],
        "peak_bytes": peak,
        "dry_run": dry_run(config)["memory, all"],
    }


def trained_for(seconds_left: float, size: Size) -> dict[str, Any]:
    """Train half of the time and fine-tune the other half, as a short run says they take."""
    first = {"pretraining": 20, "fine-tuning": 4}
    told = trained(first, size)
    taken = told["seconds"]
    share = max(seconds_left - taken["total"], 0.0) / 2
    fit = {name: max(int(num * share / taken[name]), num) for name, num in first.items()}
    return told if fit == first else trained(fit, size)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--minutes", type=float, help="train, too, until so many are over")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    args, begun = parser.parse_args(arguments), time.perf_counter()
    device = resolve_device("auto")
    if device.type != "cuda" and not args.tiny:
        parser.error("there is no GPU; --tiny runs anywhere")
    size = TINY_SIZE if args.tiny else Size()
    found = deviations(new_learner(size, (), device).networks.policy, size.chains)
    for name, value in found.items():
        print(f"{name}: {value:.2g} (at most {TOLERANCES[name]:g})")
    names = [name for name in SETTINGS if not (args.tiny and name == "and compiled")]
    rate, work = matmul_rate(device, size), counted(size, device)
    rates: dict[str, float] = {}
    for name in names:
        rates |= measured(name, size, device)
    rows = {}
    print("| what | per second | of the float32 loop | of the matrix product |\n|---|---|---|---|")
    for name, per_second in rates.items():
        kind = name.partition(",")[0]
        speedup, share = per_second / rates[f"{kind}, float32 loop"], per_second * work[kind] / rate
        rows[name] = {"per_second": per_second, "speedup": speedup, "share": share}
        print(f"| {name} | {per_second:.4g} | {speedup:.2f} | {share:.1%} |")
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    content = {
        "machine": {**machine(), "gpu": gpu},
        "deviations": found,
        "matmul_bfloat16_per_second": rate,
        "operations": work,
        "rows": rows,
    }
    if args.minutes is not None:
        left = 60 * args.minutes - (time.perf_counter() - begun)
        content["glyphs32"] = told = trained_for(left, size)
        for when in ("before", "final"):
            print(f"glyphs32, 4 steps, {when}: {told[when]}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(content, indent=1) + "\n")
    if wrong := failures(found):
        raise SystemExit(f"deviates by more than it may: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
