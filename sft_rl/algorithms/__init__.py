"""Learning algorithms: one readable page each, behind one small protocol."""

from __future__ import annotations

from sft_rl.algorithms.base import Algorithm, Networks
from sft_rl.algorithms.sft_pg import SFTPG
from sft_rl.config import Config
from sft_rl.errors import UserError, did_you_mean

__all__ = ["Algorithm", "Networks", "build_algorithm"]

ALGORITHMS: dict[str, type[Algorithm]] = {"sft_pg": SFTPG}


def build_algorithm(config: Config) -> Algorithm:
    """Build the algorithm a configuration names.

    Raises:
        UserError: If there is none of that name.
    """
    if config.algorithm not in ALGORITHMS:
        raise UserError(
            f"algorithm: {config.algorithm!r} is unknown; "
            f"{did_you_mean(config.algorithm, ALGORITHMS)}"
        )
    return ALGORITHMS[config.algorithm](config)
