"""The env, and policies that start at the pretrained sampler, for RLlib's new API stack."""

from __future__ import annotations

from typing import Any

import gymnasium
import torch
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchDiagGaussian
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from envs.wrappers import NextStepAutoreset
from sft_rl.config.files import load_config
from sft_rl.runs.parts import full_step_network, policy_of, value_of
from sft_rl.runs.resolve import resolve


def make_env(context: dict[str, Any]) -> gymnasium.Env[Any, Any] | NextStepAutoreset:
    """Make the env as an RLlib env creator: ``ray.tune.register_env("denoising", make_env)``.

    With ``env_runners(gym_env_vectorize_mode="vector_entry_point")`` RLlib asks for all envs of a
    runner at once and gets the batched one, in the autoreset mode it expects; else it gets scalar
    ones. An adversarial critic lives in its env: use one runner, or each plays against its own.

    Args:
        context: RLlib's ``env_config``: options of ``gymnasium.make``, as ``preset``.
    """
    options = dict(context)
    num_envs = options.pop("num_envs", None)
    name = "envs:sft_rl/Denoising-v0"
    if num_envs is None:
        return gymnasium.make(name, **options)
    return NextStepAutoreset(gymnasium.make_vec(name, num_envs=num_envs, **options))


class NoiseModule(DefaultPPOTorchRLModule):
    """RLlib's default PPO module with mean 0 at the start, for ``action="noise"`` and a flat Box.

    With ``free_log_std=True`` the standard deviation starts at 1, so that the policy starts as the
    pretrained sampler.
    """

    def setup(self) -> None:
        """Build the default networks; make the mean's last layer zero."""
        super().setup()
        last = self.pi.net.mlp[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


class SamplerModule(TorchRLModule, ValueFunctionAPI):
    """The pretrained sampler as a policy, for ``action="next_latent"`` and Dict observations.

    The distribution of the next latent is N(mu_theta, sigma_k^2), so before training RLlib's
    rollouts *are* the pretrained sampler. Its network is trained further; the value is the
    project's baseline network.

    ``model_config`` holds ``preset`` and ``settings``, as for the env.
    """

    def setup(self) -> None:
        """Build sampler and value network; the sampler's weights come from the cache."""
        settings = self.model_config.get("settings", ())
        config, data = resolve(load_config(self.model_config["preset"], settings), trains=False)
        network, _ = full_step_network(config, data, device=torch.device("cpu"))
        self.policy = policy_of(config, network)
        self.value = value_of(config)
        self.action_dist_cls = TorchDiagGaussian

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        latents, step_index, *labels = self._state(batch)
        mean = self.policy.mean(latents, step_index, *labels)
        log_std = self.policy.step_std(step_index).log().expand_as(mean)
        return {Columns.ACTION_DIST_INPUTS: torch.cat([mean, log_std], dim=-1)}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """V of a batch's states, shape (B,)."""
        return self.value(*self._state(batch)).squeeze(-1)

    def _state(self, batch: dict[str, Any]) -> tuple[Tensor, ...]:
        """Latents, step index, and labels or vectors if the model has any."""
        observations = batch[Columns.OBS]
        # RLlib also asks about final observations, step index T, and masks what it gets.
        last = self.policy.num_steps - 1
        step_index = observations["step_index"].long().clamp_max(last)
        labels = (observations["label"].long(),) if self.policy.num_classes else ()
        vectors = () if self.policy.conditions is None else (observations["condition"],)
        return observations["latent"], step_index, *labels, *vectors
