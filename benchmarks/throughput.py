"""Trajectories per second, bare tensor loop to Ray workers; where an iteration's time goes.

    python -m benchmarks.throughput                       # the swiss roll
    python -m benchmarks.throughput --presets swiss_roll digits
    python -m benchmarks.throughput --workers             # without Ray

Networks are as the preset makes them, untrained: speed does not depend on weights. All rows of a
preset are measured in turn, several rounds, in one run; the table has medians and the spread. Of
`pathwise` an iteration is compared with the forward and backward passes of its networks alone.
Writes ``benchmarks/results/throughput.json`` and ``docs/images/time.png``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.machine import RESULTS, machine
from sft_rl.algorithms.base import Networks
from sft_rl.config import ResolvedConfig
from sft_rl.config.files import load_config
from sft_rl.data import load_dataset
from sft_rl.jobs.build import build_runner
from sft_rl.jobs.memory import keep_freed_memory
from sft_rl.policy import DenoisingPolicy, to_arrays
from sft_rl.rollout.runner import Collector, LocalCollector, Request, RolloutRunner
from sft_rl.runs.parts import learner_of, network_of, networks_of
from sft_rl.runs.resolve import resolve
from sft_rl.types import Trajectories, given

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "time.png"
SHARDS = 8
PARTS = ("rollout", "critic", "value", "policy")


def bare_loop(policy: DenoisingPolicy, batch: int) -> None:
    """What a rollout cannot do without: T times network, noise, log-prob, all in memory."""
    latents = torch.empty(policy.num_steps + 1, batch, *policy.shape)
    log_probs = torch.empty(policy.num_steps, batch)
    source = torch.Generator().manual_seed(0)
    noise, labels = torch.empty(batch, *policy.shape), policy.random_labels(batch, source)
    with torch.inference_mode():
        latents[0].normal_(generator=source)
        for k, step in enumerate(torch.arange(policy.num_steps)):
            noise.normal_(generator=source)
            latents[k + 1], log_probs[k], _ = policy.act(latents[k], step, noise, labels)


class Order:
    """Asks a collector for the next iteration's shards, and waits for them."""

    def __init__(self, collector: Collector, runner: RolloutRunner) -> None:
        self.collector = collector
        self.weights = to_arrays(runner.policy)
        self.iteration = 0

    def __call__(self) -> None:
        """Collect once; every iteration has a version of its own, as in training."""
        self.collector.submit(Request(self.iteration, self.iteration, self.weights, SHARDS))
        for _ in self.collector.results():
            pass
        self.iteration += 1


def measured(ways: dict[str, Callable[[], None]], *, rounds: int, batch: int) -> dict[str, Any]:
    """Time every way in turn, `rounds` times; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, draw in ways.items():
            begun = time.perf_counter()
            draw()
            seconds[name].append(time.perf_counter() - begun)
    rates = {name: sorted(SHARDS * batch / s for s in times[1:]) for name, times in seconds.items()}
    return {n: {"median": median(r), "low": r[0], "high": r[-1]} for n, r in rates.items()}


def throughput(config: ResolvedConfig, workers: list[int], rounds: int) -> dict[str, Any]:
    """Trajectories per second of each way of drawing them."""
    runner = build_runner(config)
    batch = config.training.batch_size

    def bare() -> None:
        for _ in range(SHARDS):
            bare_loop(runner.policy, batch)

    def env() -> None:
        for shard in range(SHARDS):
            runner.collect(0, shard)

    ways = {"bare tensor loop": bare, "vector env": env}
    ways["in the learner's process"] = Order(LocalCollector(runner, num_threads=1), runner)
    with ExitStack() as stack:
        if workers:
            from sft_rl.distributed.session import RaySession

            session = stack.enter_context(RaySession(config.ray, config.rollout))
            session.wait()
            from sft_rl.distributed.collector import RayCollector

            for num in workers:
                options = config.rollout.model_copy(
                    update={"num_workers": num, "num_cpus_per_worker": 0.5}
                )
                collector = RayCollector(partial(build_runner, config), options)
                stack.callback(collector.close)
                ways[f"{num} Ray worker{'s' * (num > 1)}"] = Order(collector, runner)
        return measured(ways, rounds=rounds, batch=batch)


def bare_passes(networks: Networks, real: torch.Tensor, config: ResolvedConfig) -> None:
    """The network passes of a pathwise iteration: no noise, no density, no optimiser's step."""
    policy, critic = networks.policy, networks.critic
    source = torch.Generator().manual_seed(0)
    labels = given(policy.random_labels(len(real), source))
    start, steps = torch.randn(real.shape, generator=source), torch.arange(policy.num_steps)
    for _ in range(config.training.n_critic):
        with torch.inference_mode():
            for k in steps:
                policy.output(start, k, *labels)
        critic.loss(real, start, source, *labels).value.backward()  # type: ignore[no-untyped-call]
    final = start
    for k in steps:
        final = 0.9 * final + 0.1 * policy.output(final, k, *labels)
    critic.requires_grad_(False)
    critic(final, *labels).mean().backward()
    critic.requires_grad_(True)


def shares(config: ResolvedConfig, rounds: int) -> dict[str, float]:
    """Median seconds of each part of an iteration, in one process."""
    data = load_dataset(config.data)
    networks = networks_of(config, network_of(config))
    learner = learner_of(config, networks, data)
    runner = build_runner(config)
    real = data.batch(config.training.batch_size, torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {name: [] for name in (*PARTS, "bare")}
    for iteration in range(rounds + 1):
        spent = dict.fromkeys(PARTS, 0.0)

        def timed(name: str, work: Callable[[], Any], spent: dict[str, float] = spent) -> Any:
            begun = time.perf_counter()
            result = work()
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - begun
            return result

        runner.load(iteration, learner.weights())
        batches = []
        for update in range(config.training.n_critic):
            batch = timed("rollout", partial(runner.collect, iteration, update))
            batches.append(batch)
            step = partial(learner.update_critic, batch.final, iteration, update, batch.labels)
            scores, _ = timed("critic", step)
            if learner.algorithm.uses_value:
                timed("value", partial(learner.update_value, batch, scores))
        whole = Trajectories.concatenate(batches)
        timed("policy", partial(learner.update_policy, whole, iteration))
        if config.algorithm == "pathwise":
            timed("bare", partial(bare_passes, networks, real, config))
        for name, value in spent.items():
            seconds[name].append(value)
    return {name: median(values[1:]) for name, values in seconds.items() if values}


def draw(parts: dict[str, dict[str, float]], file: Path) -> None:
    """Draw a stacked bar for every preset and algorithm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = dict(zip(PARTS, ("#2a6f97", "#d1495b", "#edae49", "#66a182"), strict=True))
    figure, axis = plt.subplots(figsize=(7.0, 0.8 + 0.5 * len(parts)))
    for row, seconds in enumerate(parts.values()):
        left, total = 0.0, sum(seconds[name] for name in colours)
        for name, colour in colours.items():
            share = seconds[name] / total
            axis.barh(row, share, left=left, color=colour, label=name if row == 0 else None)
            left += share
        axis.text(1.01, row, f"{1000 * total:.0f} ms", va="center", fontsize=9)
    axis.set_yticks(range(len(parts)), list(parts))
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of an iteration in one process")
    axis.invert_yaxis()
    axis.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure, print the tables, keep numbers and picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["swiss_roll"])
    parser.add_argument("--algorithms", nargs="+", default=["sft_pg", "ppo", "hybrid", "pathwise"])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS / "throughput.json")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    rates, parts = {}, {}
    for preset in args.presets:
        rates[preset] = throughput(resolve(load_config(preset))[0], args.workers, args.rounds)
        for algorithm in args.algorithms:
            config, _ = resolve(load_config(preset, [f"algorithm={algorithm}"]))
            parts[f"{preset}, {algorithm}"] = shares(config, args.rounds)
        print(f"\n| {preset} | trajectories/s | spread | of the bare loop |\n|---|---|---|---|")
        bare = rates[preset]["bare tensor loop"]["median"]
        for name, rate in rates[preset].items():
            spread = f"{rate['low']:.0f} - {rate['high']:.0f}"
            print(f"| {name} | {rate['median']:.0f} | {spread} | {rate['median'] / bare:.2f} |")
    heads = ("one iteration", *PARTS, "ms", "passes of its networks alone")
    print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name, seconds in parts.items():
        total = sum(seconds[part] for part in PARTS)
        cells = [f"{seconds[part] / total:.0%}" for part in PARTS]
        alone = f"{seconds['bare'] / total:.0%}" if "bare" in seconds else ""
        print(f"| {name} | {' | '.join(cells)} | {1000 * total:.0f} | {alone} |")
    draw(parts, args.picture)
    content = {"machine": machine(), "rounds": args.rounds, "rates": rates, "seconds": parts}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
