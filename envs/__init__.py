"""Denoising as a Gymnasium environment.

Importing this package registers ``sft_rl/Denoising-v0``, so that
``gymnasium.make("envs:sft_rl/Denoising-v0")`` works.
"""

from envs.denoising import DenoisingEnv, DenoisingVectorEnv

__all__ = ["DenoisingEnv", "DenoisingVectorEnv"]
