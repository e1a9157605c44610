"""Where what can be computed again is kept."""

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """``SFT_RL_CACHE``, or a folder among the user's caches."""
    own = os.environ.get("SFT_RL_CACHE")
    return Path(own) if own else platformdirs.user_cache_path("sft-rl")
