"""PPO in one file, in the style of CleanRL, on the batched env with Gymnasium's usual wrappers.

    python -m examples.ppo_single_file --seed 0

About a minute on one core. Prints the sliced Wasserstein distance before and after. Copy it and
change what you like: nothing below is this project's but the env and the last number.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.wrappers.vector import ClipAction, NormalizeObservation, RecordEpisodeStatistics
from torch import Tensor, nn
from torch.distributions import Normal

from envs.wrappers import NextStepAutoreset
from examples.measure import Judge

NUM_STEPS = 10
NUM_ENVS = 512
NUM_MINIBATCHES = 2
UPDATE_EPOCHS = 2
LEARNING_RATE = 3e-4
GAE_LAMBDA = 1.0
CLIP = 0.2
MAX_GRAD_NORM = 1.0


class Agent(nn.Module):
    """Mean and value networks, one standard deviation a coordinate.

    Mean 0 and standard deviation 1 at the start: with ``action="noise"`` this is the pretrained
    sampler.
    """

    frequencies: Tensor

    def __init__(self, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.arange(6))
        self.critic = self._mlp(observation_dim, 1, std=1.0)
        self.actor_mean = self._mlp(observation_dim, action_dim, std=0.0)
        self.actor_log_std = nn.Parameter(torch.zeros(action_dim))

    def _mlp(self, in_dim: int, out_dim: int, *, std: float) -> nn.Sequential:
        last = nn.Linear(128, out_dim)
        nn.init.orthogonal_(last.weight, std)
        nn.init.zeros_(last.bias)
        return nn.Sequential(
            nn.Linear(in_dim * 13, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), last
        )

    def _features(self, x: Tensor) -> Tensor:
        angles = (x[..., None] * self.frequencies).flatten(-2)
        return torch.cat([x, angles.sin(), angles.cos()], dim=-1)

    def value(self, x: Tensor) -> Tensor:
        """V of observations (B, dim), shape (B,)."""
        return self.critic(self._features(x)).squeeze(-1)  # type: ignore[no-any-return]

    def act(self, x: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw actions (B, dim), or take given ones; return them and their log-probs (B,)."""
        distribution = Normal(self.actor_mean(self._features(x)), self.actor_log_std.exp())
        action = distribution.sample() if action is None else action  # type: ignore[no-untyped-call]
        return action, distribution.log_prob(action).sum(-1)  # type: ignore[no-untyped-call]


def make_env(seed: int, settings: list[str]) -> Any:
    """Make the batched env and put the usual wrappers around it."""
    env = gymnasium.make_vec(
        "envs:sft_rl/Denoising-v0",
        num_envs=NUM_ENVS,
        preset="swiss_roll",
        num_steps=NUM_STEPS,
        settings=[*settings, f"seed={seed}"],
        action="noise",
        observation="flat",
        reward="adversarial",
    )
    return NormalizeObservation(ClipAction(RecordEpisodeStatistics(NextStepAutoreset(env))))


def collect(agent: Agent, envs: Any) -> tuple[dict[str, Tensor], float]:
    """Play one whole episode in every row; return (T * B, …) transitions and the mean return."""
    observation, _ = envs.reset()
    steps: list[tuple[Tensor, ...]] = []
    for _ in range(NUM_STEPS):
        x = torch.as_tensor(observation)
        with torch.no_grad():
            action, log_prob = agent.act(x)
            value = agent.value(x)
        observation, reward, _, _, infos = envs.step(action.numpy())
        steps.append((x, action, log_prob, value, torch.as_tensor(reward).float()))
    names = ("observations", "actions", "log_probs", "values", "rewards")
    batch = dict(zip(names, (torch.stack(part) for part in zip(*steps, strict=True)), strict=True))
    # Every episode has ended, so nothing is bootstrapped; there is no discount.
    advantages = torch.zeros_like(batch["rewards"])
    last, next_value = torch.zeros(NUM_ENVS), torch.zeros(NUM_ENVS)
    for t in reversed(range(NUM_STEPS)):
        delta = batch["rewards"][t] + next_value - batch["values"][t]
        last = advantages[t] = delta + GAE_LAMBDA * last
        next_value = batch["values"][t]
    batch |= {"advantages": advantages, "returns": advantages + batch["values"]}
    return {k: v.flatten(0, 1) for k, v in batch.items()}, float(infos["episode"]["r"].mean())


def update(agent: Agent, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> None:
    """Take PPO's epochs of minibatches."""
    total = len(batch["actions"])
    for _ in range(UPDATE_EPOCHS):
        for rows in torch.randperm(total).chunk(NUM_MINIBATCHES):
            b = {name: values[rows] for name, values in batch.items()}
            _, log_prob = agent.act(b["observations"], b["actions"])
            ratio = (log_prob - b["log_probs"]).exp()
            a = (b["advantages"] - b["advantages"].mean()) / (b["advantages"].std() + 1e-8)
            policy_loss = -torch.min(ratio * a, ratio.clamp(1 - CLIP, 1 + CLIP) * a).mean()
            value_loss = (agent.value(b["observations"]) - b["returns"]).square().mean()
            optimizer.zero_grad()
            (policy_loss + 0.5 * value_loss).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(agent.parameters(), MAX_GRAD_NORM)
            optimizer.step()


def train(*, seed: int, iterations: int, settings: list[str]) -> dict[str, float]:
    """Fine-tune; return the distance before and after, and the seconds between."""
    torch.manual_seed(seed)
    envs = make_env(seed, settings)
    agent = Agent(*(space.shape[-1] for space in (envs.observation_space, envs.action_space)))
    optimizer = torch.optim.Adam(agent.parameters(), lr=LEARNING_RATE, eps=1e-5)

    @torch.no_grad()
    def act(observations: np.ndarray) -> np.ndarray:
        return agent.act(torch.as_tensor(envs.observations(observations)))[0].numpy()

    def measure() -> float:
        envs.update_running_mean = False
        found = judge.distance(act)
        envs.update_running_mean = True
        return found

    judge = Judge(num_steps=NUM_STEPS, settings=settings)
    envs.reset(seed=seed)
    before, started = measure(), time.perf_counter()
    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1.0 - iteration / iterations)
        batch, mean_return = collect(agent, envs)
        update(agent, optimizer, batch)
        if iteration % 50 == 0:
            print(f"iteration {iteration}  mean return {mean_return:.3f}", flush=True)
    seconds = time.perf_counter() - started
    return {"seed": seed, "before": before, "after": measure(), "seconds": round(seconds, 1)}


def main() -> None:
    """Fine-tune, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--json", type=Path, help="write the numbers into this file, too")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the preset")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = train(seed=args.seed, iterations=args.iterations, settings=args.settings)
    print(" ".join(f"{name} {value:.4g}" for name, value in result.items()))
    if args.json:
        args.json.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
