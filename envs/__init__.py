"""Denoising as a Gymnasium environment.

Importing this package registers ``sft_rl/Denoising-v0``, so that these work::

    gymnasium.make("envs:sft_rl/Denoising-v0", preset="swiss_roll", num_steps=10)
    gymnasium.make_vec("envs:sft_rl/Denoising-v0", num_envs=4096, preset="swiss_roll")
"""

import gymnasium

from envs.adversarial import AdversarialReward
from envs.denoising import DenoisingEnv, DenoisingVectorEnv

__all__ = ["AdversarialReward", "DenoisingEnv", "DenoisingVectorEnv"]

gymnasium.register(
    id="sft_rl/Denoising-v0",
    entry_point="envs.factory:make_env",
    vector_entry_point="envs.factory:make_vector_env",
)
