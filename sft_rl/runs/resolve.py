"""Settings are looked up, and checked, once, at the door, whichever door it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch import nn

from sft_rl.config import Config, PretrainedConfig, ResolvedConfig
from sft_rl.config.extensions import with_typed_options
from sft_rl.config.files import lookup
from sft_rl.config.paths import with_absolute_paths
from sft_rl.data import Dataset
from sft_rl.rewards import OwnReward, handed_over
from sft_rl.runs.checks import check
from sft_rl.runs.models import OF_MODEL, Sections, of_pretrained, with_hash
from sft_rl.runs.parts import data_of, resolve_device
from sft_rl.storage.checkpoint import state_sha256
from sft_rl.types import Progress, silent


def resolve(
    config: Config,
    *,
    network: nn.Module | None = None,
    data: Dataset | None = None,
    reward: OwnReward = None,
    pretrained: Sections | None = None,
    fetch: bool = True,
    trains: bool = True,
    warn: Callable[[str], None] = warnings.warn,
    progress: Progress = silent,
) -> tuple[ResolvedConfig, Dataset]:
    """Look up and check all that a configuration names.

    Paths become absolute; what a pretrained model says of itself is filled in, with its hash;
    options of the user's own classes are typed; the data are loaded, and what samples are is
    written down.

    Args:
        config: The settings.
        network: A noise-prediction network that Python hands over in place of a full-step model.
        data: Data that Python hands over, or that are loaded already.
        reward: A reward that Python hands over.
        pretrained: What was read of `pretrained.path` before.
        fetch: Fetch a model from the hub, if it is there.
        trains: Check what the algorithm needs, too; an env or a pretraining runs none.
        warn: Is told before a model is asked for on the hub.
        progress: Is told how many pictures are decoded.

    Returns:
        The resolved configuration, and the data.

    Raises:
        UserError: Naming the field, what was given and what is allowed.
    """
    config = with_absolute_paths(config)
    if network is not None:
        model = config.model.model_copy(update={"kind": "own"})
        known = PretrainedConfig(sha256=state_sha256(network))
        config = config.model_copy(update={"model": model, "pretrained": known})
    elif config.model.factory is not None:
        known = with_hash(config.model, config.pretrained)
        config = config.model_copy(update={"pretrained": known})
    elif config.pretrained.path is not None:
        sections = of_pretrained(
            config.pretrained,
            pretrained,
            num_classes=config.model.num_classes,
            given={k: lookup(config, k) for k in config.own_keys if k.startswith(OF_MODEL)},
            fetch=fetch,
            warn=warn,
        )
        tree = config.model_dump()
        for name, values in sections.items():
            tree[name] = {**tree[name], **values}
        config = Config.model_validate(tree)
    if reward is not None:
        config = config.model_copy(update={"reward": handed_over(reward)[0]})
    config = with_typed_options(config)
    data = data_of(config, data, device=resolve_device(config.device), progress=progress, warn=warn)
    if data.units.samples.prompts is not None:  # and the empty one, which guidance needs
        num = len(data.units.samples.prompts.texts) + 1
        update = {"classes": num, "null_class": True}
        config = config.model_copy(update={"model": config.model.model_copy(update=update)})
    known_of_data = {"data": data.config, "samples": data.units.samples}
    resolved = ResolvedConfig.model_construct(**{**dict(config), **known_of_data})
    check(resolved, data, network=network, reward=reward, trains=trains)
    return resolved, data
