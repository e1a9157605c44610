"""Learning algorithms: one readable page each, behind one small protocol."""

from __future__ import annotations

from sft_rl.algorithms.base import Algorithm, Networks
from sft_rl.algorithms.grpo import GRPO
from sft_rl.algorithms.hybrid import Hybrid
from sft_rl.algorithms.nft import NFT
from sft_rl.algorithms.pathwise import Pathwise
from sft_rl.algorithms.ppo import PPO
from sft_rl.algorithms.sft_pg import SFTPG
from sft_rl.config.extensions import is_reference, load_class
from sft_rl.errors import UserError, did_you_mean

__all__ = ["Algorithm", "Networks", "algorithm_class"]

ALGORITHMS: dict[str, type[Algorithm]] = {
    "sft_pg": SFTPG,
    "ppo": PPO,
    "pathwise": Pathwise,
    "hybrid": Hybrid,
    "grpo": GRPO,
    "nft": NFT,
}


def algorithm_class(name: str) -> type[Algorithm]:
    """Find the algorithm of a name, ours or a user's ``module:Class``.

    Raises:
        UserError: If there is none of that name.
    """
    if is_reference(name):
        return load_class("algorithm", name, Algorithm)  # type: ignore[no-any-return]
    if name not in ALGORITHMS:
        raise UserError(f"algorithm: {name!r} is unknown; {did_you_mean(name, ALGORITHMS)}")
    return ALGORITHMS[name]
