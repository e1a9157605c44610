"""What ``gymnasium.make`` and ``gymnasium.make_vec`` call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from envs.denoising import DenoisingEnv, DenoisingVectorEnv
from envs.rewards import Source, build_reward
from sft_rl.config.files import load_config
from sft_rl.errors import UserError
from sft_rl.networks.conditions import told_apart
from sft_rl.policy import DenoisingPolicy
from sft_rl.rewards import OwnReward
from sft_rl.runs.parts import data_of, full_step_network, policy_of
from sft_rl.runs.remote import open_run
from sft_rl.runs.resolve import resolve


def make_env(**options: Any) -> DenoisingEnv:
    """Make the scalar env; see :func:`env_arguments` for the options."""
    render_mode = options.pop("render_mode", None)
    return DenoisingEnv(**env_arguments(**options), render_mode=render_mode)


def make_vector_env(num_envs: int = 1, **options: Any) -> DenoisingVectorEnv:
    """Make the batched env; `array`, `device` and `render_mode` go to it, the rest as above."""
    own = {k: options.pop(k) for k in ("array", "device", "render_mode") if k in options}
    device = torch.device(own.get("device", "cpu"))
    return DenoisingVectorEnv(num_envs=num_envs, **env_arguments(**options, device=device), **own)


def env_arguments(
    *,
    preset: str | None = None,
    run: str | Path | None = None,
    policy: DenoisingPolicy | None = None,
    num_steps: int | None = None,
    settings: Sequence[str] = (),
    prompts: Sequence[str] | None = None,
    reward: OwnReward = None,
    reward_options: dict[str, Any] | None = None,
    action: str = "next_latent",
    action_bound: float | None = None,
    observation: str = "dict",
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Resolve where the sampler, the data and the reward come from.

    Args:
        preset: A preset, whose pretrained model is taken from the cache or trained now.
        run: A run's folder instead: its fine-tuned sampler, data and critic.
        policy: A sampler of your own instead, with `reward` a callable or None.
        num_steps: Number of steps T, for a preset.
        settings: ``key=value`` settings, for a preset.
        prompts: Texts to draw prompts from, of those of a text-to-image run; None draws from all.
        reward: ``"critic"`` (a run's, frozen), ``"adversarial"`` (trained by the env), a function,
            object or module as of :class:`sft_rl.rewards.Reward`, its ``"module:name"``, a list of
            such as terms of a weighted sum, or None to pay nothing.
        reward_options: Options of :class:`envs.AdversarialReward`; what is not given, and the
            critic with its regulariser, come from the settings.
        action: See :class:`envs.DenoisingEnv`.
        action_bound: See :class:`envs.DenoisingEnv`.
        observation: See :class:`envs.DenoisingEnv`.
        device: Where networks and latents live.

    Raises:
        UserError: If the sources do not fit together.
    """
    device = device or torch.device("cpu")
    if sum(source is not None for source in (preset, run, policy)) != 1:
        raise UserError("env: give exactly one of preset, run or policy")
    source = None
    if run is not None:
        if num_steps is not None or settings:
            raise UserError("env: num_steps and settings go with a preset; a run has its own")
        source = _of_run(run)
    elif preset is not None:
        source = _of_preset(preset, num_steps, settings, device)
    if policy is None:
        assert source is not None
        policy = source.policy
    policy = policy.to(device).requires_grad_(False).eval()
    embeddings = getattr(policy.network, "prompts", None)
    return {
        "num_steps": policy.num_steps,
        "shape": policy.shape,
        "policy": policy,
        "num_classes": policy.num_classes,
        "conditions": policy.conditions,
        "embeddings": None if embeddings is None else told_apart(embeddings),
        "drawn": None if prompts is None else _numbers(prompts, source).to(device),
        "action": action,
        "action_bound": action_bound,
        "observation": observation,
        "reward": build_reward(
            reward,
            reward_options or {},
            source,
            num_classes=policy.num_classes,
            device=device,
        ),
    }


def _numbers(prompts: Sequence[str], source: Source | None) -> torch.Tensor:
    """Numbers of some prompts among those of where the sampler comes from."""
    known = None if source is None else source.config.samples.prompts
    if known is None:
        raise UserError("prompts: go with a run or preset of a text-to-image pipeline")
    if isinstance(prompts, str) or not prompts:
        raise UserError(f"prompts: expected a list of texts, got {prompts!r}")
    return torch.tensor([known.number(prompt, field="prompts") for prompt in prompts])


def _of_preset(
    preset: str, num_steps: int | None, settings: Sequence[str], device: torch.device
) -> Source:
    if num_steps is not None:
        settings = [*settings, f"sampler.num_steps={num_steps}"]
    config, data = resolve(load_config(preset, settings), trains=False)
    network, _ = full_step_network(config, data, device=device)
    return Source(config, policy_of(config, network), lambda: data)


def _of_run(place: str | Path) -> Source:
    store = open_run(place)
    policy, tensors = store.result()
    return Source(store.config, policy, lambda: data_of(store.config), tensors)
