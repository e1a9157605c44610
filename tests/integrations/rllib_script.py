"""Train RLlib's PPO on the env with several modules; run by test_rllib.py where a Ray runs."""

import math
import sys
from typing import Any

import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.tune.registry import register_env

from sft_rl.config.files import load_config
from sft_rl.distributed.rllib import NoiseModule, SamplerModule, make_env
from sft_rl.runs.parts import full_step_network, policy_of
from sft_rl.runs.resolve import resolve

SETTINGS = sys.argv[1:]
NUM_ENVS, NUM_STEPS = 8, 4


def build(action: str, observation: str, spec: Any, *, batched: bool) -> Any:
    config = PPOConfig().environment(
        "denoising",
        env_config={
            "preset": "swiss_roll",
            "settings": SETTINGS,
            "action": action,
            "observation": observation,
            "reward": "adversarial",
        },
        normalize_actions=False,
    )
    config.env_runners(
        num_env_runners=0,
        num_envs_per_env_runner=NUM_ENVS if batched else 1,
        gym_env_vectorize_mode="vector_entry_point" if batched else "sync",
        batch_mode="complete_episodes",
    )
    size = NUM_STEPS * NUM_ENVS
    config.learners(num_learners=0).training(
        train_batch_size_per_learner=size, minibatch_size=size // 2, num_epochs=1, gamma=1.0
    )
    return config.rl_module(rl_module_spec=spec).debugging(seed=0).build_algo()


def parameters(algorithm: Any) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in algorithm.get_module().named_parameters()}


def train(name: str, algorithm: Any, first: str) -> None:
    """Train for an iteration: whole episodes, a finite loss, the runner gets other weights."""
    before = parameters(algorithm)
    result = algorithm.train()
    assert result["env_runners"]["episode_len_mean"] == NUM_STEPS
    assert math.isfinite(result["learners"]["default_policy"]["total_loss"])
    after = parameters(algorithm)
    assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith(first))
    algorithm.stop()
    sys.stdout.write(f"{name} trained\n")


def main() -> None:
    register_env("denoising", make_env)
    default = RLModuleSpec(model_config=DefaultModelConfig(fcnet_hiddens=[16]))
    train("default", build("noise", "flat", default, batched=True), "pi")

    sampler = RLModuleSpec(
        module_class=SamplerModule, model_config={"preset": "swiss_roll", "settings": SETTINGS}
    )
    algorithm = build("next_latent", "dict", sampler, batched=True)
    config, data = resolve(load_config("swiss_roll", SETTINGS))
    policy = policy_of(config, full_step_network(config, data)[0])
    latents, k = torch.randn(4, 2), torch.arange(4)
    out = algorithm.get_module().forward_exploration({"obs": {"latent": latents, "step_index": k}})
    mean, log_std = out["action_dist_inputs"].chunk(2, dim=-1)
    torch.testing.assert_close(mean, policy.mean(latents, k))
    torch.testing.assert_close(log_std.exp(), policy.step_std(k).expand(4, 2))
    train("sampler", algorithm, "policy.network")

    start = RLModuleSpec(
        module_class=NoiseModule,
        model_config=DefaultModelConfig(fcnet_hiddens=[16], free_log_std=True),
    )
    algorithm = build("noise", "flat", start, batched=False)
    out = algorithm.get_module().forward_exploration({"obs": torch.randn(4, 3)})
    assert torch.equal(out["action_dist_inputs"], torch.zeros(4, 4))  # mean 0, log std 0
    train("scalar", algorithm, "pi")


if __name__ == "__main__":
    main()
