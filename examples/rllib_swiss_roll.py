"""RLlib's PPO turns a pretrained sampler into a better one.

The policy acts in the noise of the pretrained sampler: it starts as a standard normal, which *is*
that sampler. All envs of the one runner are one batched env, which trains the critic.

    python -m examples.rllib_swiss_roll --seed 0

Some minutes on two cores. Prints the sliced Wasserstein distance before and after. To fine-tune the
sampler's own network instead, see ``SamplerModule`` in ``sft_rl/distributed/rllib.py``.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples.measure import Act, Judge
from sft_rl.config import RayConfig, RolloutConfig
from sft_rl.distributed.session import RaySession

NUM_STEPS = 10
NUM_ENVS = 512


def make_algorithm(seed: int, iterations: int) -> Any:
    """Put PPO on the env; its policy is the pretrained sampler."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.tune.registry import register_env

    from sft_rl.distributed.rllib import NoiseModule, make_env

    register_env("denoising", make_env)
    transitions = NUM_STEPS * NUM_ENVS
    config = (
        PPOConfig()
        .environment(
            "denoising",
            env_config={
                "preset": "swiss_roll",
                "num_steps": NUM_STEPS,
                "settings": [f"seed={seed}"],
                "action": "noise",
                "observation": "flat",
                "reward": "adversarial",
            },
            normalize_actions=False,  # they are in units of the sampler's noise already
        )
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=NUM_ENVS,
            gym_env_vectorize_mode="vector_entry_point",
            batch_mode="complete_episodes",
        )
        .learners(num_learners=0)
        .training(
            train_batch_size_per_learner=transitions,
            minibatch_size=transitions // 2,
            num_epochs=2,
            lr=[[0, 3e-4], [iterations * transitions, 0.0]],
            gamma=1.0,
            lambda_=1.0,
            use_kl_loss=False,
            vf_clip_param=float("inf"),
            grad_clip=1.0,
        )
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=NoiseModule,
                model_config=DefaultModelConfig(
                    fcnet_hiddens=[128, 128],
                    fcnet_activation="relu",
                    vf_share_layers=False,
                    free_log_std=True,
                ),
            )
        )
        .debugging(seed=seed, log_level="ERROR")
    )
    return config.build_algo()


def make_act(algorithm: Any) -> Act:
    """Return the algorithm's policy as a function of flat observations."""
    from ray.rllib.core.columns import Columns

    def act(observations: np.ndarray) -> np.ndarray:
        module = algorithm.get_module()
        out = module.forward_exploration({Columns.OBS: torch.as_tensor(observations)})
        policy = module.get_exploration_action_dist_cls().from_logits(out["action_dist_inputs"])
        return np.asarray(policy.sample())

    return act


def main() -> None:
    """Fine-tune, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--json", type=Path, help="write the numbers into this file, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with RaySession(RayConfig(), RolloutConfig()) as session:
        session.wait()
        algorithm = make_algorithm(args.seed, args.iterations)
        act = make_act(algorithm)
        judge = Judge(num_steps=NUM_STEPS)
        before, started = judge.distance(act), time.perf_counter()
        for iteration in range(args.iterations):
            algorithm.train()
            if iteration % 10 == 0:
                print(f"iteration {iteration}  {time.perf_counter() - started:.0f} s", flush=True)
        seconds = time.perf_counter() - started
        after = judge.distance(act)
        algorithm.stop()
    result = {"seed": args.seed, "before": before, "after": after, "seconds": round(seconds, 1)}
    print(" ".join(f"{name} {value:.4g}" for name, value in result.items()))
    if args.json:
        args.json.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
