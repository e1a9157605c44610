"""Stable-Baselines3's PPO turns a pretrained sampler into a better one, without knowing of it.

The policy acts in the noise of the pretrained sampler: it starts as a standard normal, which *is*
that sampler, and learns where noise should not be plain. The env trains the critic.

    python -m examples.sb3_swiss_roll --seed 0

About a minute on one core. Prints the sliced Wasserstein distance before and after.
"""

import argparse
import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from envs.integrations.stable_baselines3 import StableBaselines3VecEnv
from examples.measure import Act, Judge
from sft_rl.learning.optim import update_average
from sft_rl.networks.mlp import FourierFeatures

NUM_STEPS = 10
PLAIN_START = ("sampler.start_time=999", "sampler.spacing=uniform")
"""Ten of the model's 1000 times, both ends included; the preset's own late start is a shortcut."""
NUM_ENVS = 512
VALIDATE_EVERY = 25
"""Rollouts."""


class Features(BaseFeaturesExtractor):
    """Fourier features of the latent, as the swiss roll is fine, and the step as one of T."""

    def __init__(self, space: spaces.Box, num: int = 6, highest: float = 32.0) -> None:
        super().__init__(space, (space.shape[0] - 1) * (1 + 2 * num) + NUM_STEPS)
        self.fourier = FourierFeatures(num, highest)

    def forward(self, observations: Tensor) -> Tensor:
        """Map (B, dim + 1) to (B, features)."""
        latents, progress = observations[:, :-1], observations[:, -1]
        # The step after the last, seen at the end only, counts as the last.
        step = (progress * NUM_STEPS).round().long().clamp_max(NUM_STEPS - 1)
        return torch.cat([self.fourier(latents), F.one_hot(step, NUM_STEPS)], dim=1)


class BestAverage(BaseCallback):
    """Averages the newest policies, and keeps the average that does best on training data.

    The game with the critic makes the policy swing: so does the project's own trainer.
    """

    def __init__(self, model: PPO, judge: Judge) -> None:
        super().__init__()
        self.judge = judge
        self.average, self.best = copy.deepcopy(model.policy), copy.deepcopy(model.policy)
        self.best_distance = judge.validate(act_of(self.best))
        self.num_rollouts = 0

    def _on_rollout_end(self) -> None:
        update_average(self.average, self.model.policy, decay=0.99, num_updates=self.num_rollouts)
        self.num_rollouts += 1
        if self.num_rollouts % VALIDATE_EVERY == 0:
            distance = self.judge.validate(act_of(self.average))
            if distance < self.best_distance:
                self.best_distance = distance
                self.best.load_state_dict(self.average.state_dict())

    def _on_step(self) -> bool:
        return True


def act_of(policy: ActorCriticPolicy) -> Act:
    """Return a policy as a function from observations to actions."""
    return lambda observations: np.asarray(policy.predict(observations)[0])


def make_model(seed: int, settings: Sequence[str] = PLAIN_START) -> PPO:
    """Put PPO on the env; its policy is the pretrained sampler."""
    env = gymnasium.make_vec(
        "envs:sft_rl/Denoising-v0",
        num_envs=NUM_ENVS,
        preset="swiss_roll",
        num_steps=NUM_STEPS,
        settings=[*settings, f"seed={seed}"],
        action="noise",
        observation="flat",
        reward="adversarial",
        reward_options={"update_every": NUM_ENVS, "num_updates": 4},
    )
    model = PPO(
        "MlpPolicy",
        StableBaselines3VecEnv(env),  # type: ignore[arg-type]
        n_steps=NUM_STEPS,  # whole episodes
        batch_size=NUM_STEPS * NUM_ENVS // 2,
        n_epochs=2,
        learning_rate=lambda left: 3e-4 * left,
        gamma=1.0,
        gae_lambda=1.0,
        max_grad_norm=1.0,
        policy_kwargs={
            "features_extractor_class": Features,
            "share_features_extractor": False,
            "activation_fn": nn.ReLU,
            "net_arch": [128, 128],
            "log_std_init": 0.0,
        },
        seed=seed,
        device="cpu",
    )
    assert isinstance(model.policy.action_net, nn.Linear)
    nn.init.zeros_(model.policy.action_net.weight)  # mean 0; its bias is 0 already
    return model


def main() -> None:
    """Fine-tune, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--json", type=Path, help="write the numbers into this file, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = make_model(args.seed)
    judge = Judge(num_steps=NUM_STEPS, settings=PLAIN_START)
    before = judge.distance(act_of(model.policy))
    started = time.perf_counter()
    result_of = BestAverage(model, judge)
    model.learn(args.iterations * NUM_STEPS * NUM_ENVS, callback=result_of)
    seconds = time.perf_counter() - started
    result = {
        "seed": args.seed,
        "before": before,
        "after": judge.distance(act_of(result_of.best)),
        "seconds": round(seconds, 1),
    }
    print(" ".join(f"{name} {value:.4g}" for name, value in result.items()))
    if args.json:
        args.json.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
