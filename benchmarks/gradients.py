"""How good one batch's policy gradient is: its cosine to the true one, its noise, its seconds.

    python -m benchmarks.gradients                                              # the swiss roll
    python -m benchmarks.gradients glyphs16 sampler.num_steps=4 --batches 24    # pictures

The preset's stochastic sampler is fine-tuned for some iterations, so that the critic knows it. Then
nothing moves any more, and each estimator computes the gradient of the network's weights on batches
of its own: all have the same expectation, up to a factor. The true gradient is the mean of those of
the estimator with the least noise (for its own batches, of the others of them). A batch's signal is
|mean|^2, its noise the trace of its covariance; the last column divides their ratio by the seconds
that a batch took, drawing included. Writes ``benchmarks/results/gradients-PRESET-T10.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import time

import numpy as np
import torch

from benchmarks.machine import RESULTS, machine
from sft_rl.config import ResolvedConfig
from sft_rl.config.files import load_config
from sft_rl.data import load_dataset
from sft_rl.jobs.build import build_runner
from sft_rl.learning.learner import Learner
from sft_rl.runs.parts import algorithm_of, full_step_network, learner_of, networks_of
from sft_rl.runs.resolve import resolve
from sft_rl.seeding import generator

Array = np.ndarray
ESTIMATORS = {
    "pathwise": ("algorithm=pathwise",),
    "sft_pg, look-ahead": ("algorithm=sft_pg",),
    "sft_pg, no baseline": ("algorithm=sft_pg", "sft_pg.baseline=none"),
    "hybrid, one last step": ("algorithm=hybrid", "hybrid.num_last_steps=1"),
    "hybrid, two last steps": ("algorithm=hybrid", "hybrid.num_last_steps=2"),
}
OPEN = ("sft_pg.normalise_advantages=none", "rollout.num_workers=0", "training.n_critic=1")
"""No estimator is scaled by its own batch, and a batch is one critic step's trajectories."""


class State:
    """A sampler and its critic after some iterations.

    Args:
        preset: Name of the preset.
        settings: On top of it.
        iterations: How many.
    """

    def __init__(self, preset: str, settings: list[str], iterations: int) -> None:
        self.preset, self.settings = preset, [*settings, *OPEN]
        self.config = self.with_settings(ESTIMATORS["sft_pg, look-ahead"])
        data = load_dataset(self.config.data)
        network, _ = full_step_network(self.config, data)
        self.networks = networks_of(self.config, network)
        self.runner = build_runner(self.config)
        learner = learner_of(self.config, self.networks, data)
        for iteration in range(iterations):
            self._iterate(learner, iteration)
        self.runner.load(learner.version, learner.weights())
        self.networks.critic.requires_grad_(False)

    def with_settings(self, settings: tuple[str, ...]) -> ResolvedConfig:
        """The preset's configuration with an estimator's settings."""
        return resolve(load_config(self.preset, [*settings, *self.settings]))[0]

    def _iterate(self, learner: Learner, iteration: int) -> None:
        learner.begin_iteration(iteration)
        self.runner.load(learner.version, learner.weights())
        trajectories = self.runner.collect(iteration, 0)
        learner.update_critic(trajectories.final, iteration, 0)
        learner.update_policy(trajectories, iteration)

    def gradients(self, settings: tuple[str, ...], batches: range) -> tuple[Array, float]:
        """Gradients of some batches, shape (N, P), and processor seconds of one.

        Args:
            settings: Of the estimator.
            batches: Numbers of the batches; equal ones have equal trajectories.
        """
        algorithm = algorithm_of(self.with_settings(settings))
        parameters = list(self.networks.policy.network.parameters())
        found, begun = [], time.process_time()
        for number in batches:
            trajectories = self.runner.collect(number, 0)
            prepared = algorithm.prepare(trajectories, self.networks)
            (batch,) = algorithm.batches(prepared, generator(number, "gradients"))
            value = algorithm.loss(batch, self.networks).value
            parts = torch.autograd.grad(value, parameters, allow_unused=True)
            flat = [
                torch.zeros_like(p) if g is None else g
                for g, p in zip(parts, parameters, strict=True)
            ]
            found.append(torch.cat([g.flatten() for g in flat]).numpy())
        return np.stack(found), (time.process_time() - begun) / len(batches)


def signal_and_noise(gradients: Array) -> tuple[float, float]:
    """Squared length of the expectation, without bias, and trace of the covariance."""
    mean = gradients.mean(axis=0)
    noise = float(gradients.var(axis=0, ddof=1).sum())
    return float(mean @ mean) - noise / len(gradients), noise


def cosines(gradients: Array, true: Array) -> Array:
    """Cosine of each gradient (N, P) to the true one (P,), or to one of its own each (N, P)."""
    lengths = np.linalg.norm(gradients, axis=1) * np.linalg.norm(true, axis=-1)
    return np.asarray((gradients * true).sum(axis=1) / lengths)


def judged(found: dict[str, Array], seconds: dict[str, float]) -> dict[str, dict[str, float]]:
    """The numbers of the table, by estimator."""
    ratios = {name: noise / signal for name, (signal, noise) in _parts(found) if signal > 0}
    best = min(ratios, key=lambda name: ratios[name])
    numbers = {}
    for name, gradients in found.items():
        mean = found[best].mean(axis=0)
        others = (mean * len(gradients) - gradients) / (len(gradients) - 1)
        cosine = cosines(gradients, others if name == best else mean)
        numbers[name] = {
            "cosine": float(cosine.mean()),
            "cosine_se": float(cosine.std(ddof=1) / len(cosine) ** 0.5),
            "noise_by_signal": ratios.get(name, math.inf),
            "cpu_seconds": seconds[name],
        }
    return numbers


def _parts(found: dict[str, Array]) -> list[tuple[str, tuple[float, float]]]:
    return [(name, signal_and_noise(gradients)) for name, gradients in found.items()]


def main() -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("preset", nargs="?", default="swiss_roll")
    parser.add_argument("settings", nargs="*", help="further key=value settings")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=40, help="before, so the critic knows it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    state = State(args.preset, args.settings, args.iterations)
    found, seconds = {}, {}
    for index, (name, settings) in enumerate(ESTIMATORS.items()):
        first = 10**6 + index * args.batches
        batches = range(first, first + args.batches)
        found[name], seconds[name] = state.gradients(settings, batches)
    numbers = judged(found, seconds)
    print("| estimator | cosine | noise / signal | CPU s a batch | signal / noise a second |")
    print("|---|---|---|---|---|")
    for name, one in numbers.items():
        rate = 1.0 / (one["noise_by_signal"] * one["cpu_seconds"])
        print(
            f"| {name} | {one['cosine']:.3f} ± {one['cosine_se']:.3f} | "
            f"{one['noise_by_signal']:.2f} | {one['cpu_seconds']:.3f} | {rate:.2f} |"
        )
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": machine(), "arguments": vars(args), "estimators": numbers}
    path = RESULTS / f"gradients-{args.preset}-T{state.config.sampler.num_steps}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
