"""What a step of the vector env costs on top of the tensor operation it stands for.

    python -m benchmarks.env_overhead
    python -m benchmarks.env_overhead --rows 64 512 4096    # only against Gymnasium's own

Three ways to denoise one batch by T = 10 steps, each through the env and bare:

* ``next_latent``: bare is ``policy.act``, the network, mean + std * noise and its log-prob, with
  the latents kept in a variable; with the env every next latent goes through ``env.step``.
* ``noise``: bare is mean + std * noise of the pretrained sampler; with the env the noise is the
  action, and the env computes the rest.

Both sides draw the same kind of noise and start every episode from fresh noise; the reward is none
(a critic's cost is the same on both sides). So the overhead is: checking actions, observations,
flags, the start of episodes from one seed a row, and copies where the env hands out numpy.

Points: 4,096 in two dimensions, the network of the preset ``swiss_roll``. Images: 64 of 3 x 32 x
32, a plain network of two residual 3 x 3 convolutions with 32 channels, far smaller than a real
U-Net, which makes the env's share larger than it will be.

Everything computes in one thread, and what is measured is that thread's processor time, so that
other processes do not count. Env and bare take turns; the overhead is the median of the ratios of
neighbours, minus 1. Prints a table and writes ``benchmarks/results/env_overhead.json``.

``--rows`` steps the batched env and Gymnasium's ``SyncVectorEnv`` of as many scalar ones, points
in two dimensions, actions given, and prints the steps of single rows a second of processor time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from torch import Tensor, nn

from benchmarks.machine import RESULTS, machine
from envs import DenoisingEnv, DenoisingVectorEnv
from sft_rl.config import Config
from sft_rl.config.files import load_config
from sft_rl.diffusion.noise import NoiseSchedule
from sft_rl.diffusion.schedule import step_schedule
from sft_rl.jobs.memory import keep_freed_memory
from sft_rl.networks import noise_network
from sft_rl.policy import DenoisingPolicy

NUM_STEPS = 10


class PlainConvNet(nn.Module):
    """Predicts the noise of images by residual 3 x 3 convolutions; the time shifts the channels."""

    def __init__(self, channels: int = 3, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.time = nn.Linear(1, width)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Map images (B, C, H, W) and times, scalar or (B,), to noise of the same shape."""
        h = self.first(x) + self.time(t.reshape(-1, 1) / 1000.0)[:, :, None, None]
        for block in self.blocks:
            h = h + block(torch.relu(h))
        return self.last(h)  # type: ignore[no-any-return]


def make_policy(config: Config, kind: str) -> DenoisingPolicy:
    """A sampler of points or images; its weights do not matter."""
    torch.manual_seed(0)
    shape = (2,) if kind == "points" else (3, 32, 32)
    network = (
        noise_network(config.model, config.noise, shape) if kind == "points" else PlainConvNet()
    )
    schedule = step_schedule(NoiseSchedule.from_config(config.noise), config.sampler)
    return DenoisingPolicy(network, schedule, shape=shape).requires_grad_(False).eval()


def bare_episode(policy: DenoisingPolicy, num: int, action: str) -> Callable[[], Tensor]:
    """What a loop without an env does: T steps from fresh noise."""
    noise = torch.empty(num, *policy.shape)
    steps = torch.arange(policy.num_steps)

    def episode() -> Tensor:
        x = torch.randn(num, *policy.shape)
        for k in steps:
            noise.normal_()
            if action == "next_latent":
                x, *_ = policy.act(x, k, noise)
            else:
                x = policy.mean(x, k) + policy.step_std(k) * noise
        return x

    return episode


def env_episode(env: DenoisingVectorEnv, policy: DenoisingPolicy, action: str) -> Callable[[], Any]:
    """The same through the env: T steps, the last of which starts the next episode."""
    noise = torch.empty(env.num_envs, *policy.shape)
    numpy_noise = noise.numpy()  # the same memory
    state: dict[str, Any] = {"latent": env.reset(seed=0)[0]["latent"]}
    steps = torch.arange(policy.num_steps)

    def episode() -> Any:
        for k in steps:
            noise.normal_()
            a: Any = noise if env.array == "torch" else numpy_noise
            if action == "next_latent":
                a, *_ = policy.act(torch.as_tensor(state["latent"]), k, noise)
                a = a if env.array == "torch" else a.numpy()
            state["latent"] = env.step(a)[0]["latent"]
        return state["latent"]

    return episode


def seconds(call: Callable[[], Any]) -> float:
    """Processor time of one call."""
    begun = time.thread_time()
    call()
    return time.thread_time() - begun


def compare(config: Config, kind: str, action: str, array: str, repeats: int) -> dict[str, Any]:
    """Let env and bare take turns for `repeats` episodes each."""
    num = 4096 if kind == "points" else 64
    policy = make_policy(config, kind)
    env = DenoisingVectorEnv(
        num_envs=num,
        num_steps=policy.num_steps,
        shape=policy.shape,
        action=action,
        policy=policy,
        array=array,
    )
    bare, through_env = bare_episode(policy, num, action), env_episode(env, policy, action)
    with torch.inference_mode():
        for call in (bare, through_env):
            call()
        times = np.array([(seconds(bare), seconds(through_env)) for _ in range(repeats)])
    ratios = times[:, 1] / times[:, 0] - 1.0
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return {
        "samples": f"{num} {kind}",
        "action": action,
        "array": array,
        "repeats": repeats,
        "bare_ms_per_step": float(np.median(times[:, 0])) / NUM_STEPS * 1e3,
        "env_ms_per_step": float(np.median(times[:, 1])) / NUM_STEPS * 1e3,
        "overhead": float(middle),
        "overhead_quartiles": [float(low), float(high)],
    }


def rates(num: int, repeats: int) -> dict[str, float]:
    """Steps of single rows a second of the batched env and of a vector of scalar ones."""
    options: dict[str, Any] = {"num_steps": NUM_STEPS, "shape": (2,)}
    envs = {
        "batched": DenoisingVectorEnv(num_envs=num, **options),
        "SyncVectorEnv": SyncVectorEnv([partial(DenoisingEnv, **options)] * num),
    }
    actions = np.random.default_rng(0).standard_normal((num, 2)).astype(np.float32)
    found = {}
    for name, env in envs.items():
        env.reset(seed=0)
        times = [seconds(partial(env.step, actions)) for _ in range(repeats * NUM_STEPS)]
        # The mean: one step in T begins episodes and costs more.
        found[name] = num / float(np.mean(times[NUM_STEPS:]))
        env.close()
    return found


def compare_vector_envs(rows: list[int], repeats: int) -> None:
    """Print the table of the batched env against Gymnasium's own."""
    print("| rows | batched, steps/s | SyncVectorEnv, steps/s | times |\n|---|---|---|---|")
    for num in rows:
        found = rates(num, repeats)
        batched, single = found["batched"], found["SyncVectorEnv"]
        print(f"| {num} | {batched:,.0f} | {single:,.0f} | {batched / single:.0f} |", flush=True)


def main() -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200, help="episodes of points")
    parser.add_argument("--rows", type=int, nargs="+", help="against Gymnasium's own, that is all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    if args.rows:
        compare_vector_envs(args.rows, args.repeats)
        return
    config = load_config("swiss_roll", [f"sampler.num_steps={NUM_STEPS}"])
    print("| samples | action | array | bare, ms a step | env, ms a step | overhead (quartiles) |")
    print("|---|---|---|---|---|---|")
    rows = []
    for kind, repeats in (("points", args.repeats), ("images", max(args.repeats // 8, 3))):
        for action in ("next_latent", "noise"):
            for array in ("torch", "numpy"):
                row = compare(config, kind, action, array, repeats)
                rows.append(row)
                low, high = row["overhead_quartiles"]
                print(
                    f"| {row['samples']} | {action} | {array} | {row['bare_ms_per_step']:.3f} "
                    f"| {row['env_ms_per_step']:.3f} "
                    f"| {row['overhead']:.1%} ({low:.1%} … {high:.1%}) |",
                    flush=True,
                )
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": machine(), "threads": 1, "num_steps": NUM_STEPS, "rows": rows}
    (RESULTS / "env_overhead.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
