"""RLlib's PPO: its default module on a Box, and the sampler itself as its policy."""

from pathlib import Path

import pytest
from users_ray import UsersRay

pytestmark = [pytest.mark.integrations, pytest.mark.ray]

SCRIPT = Path(__file__).parent / "rllib_script.py"


def test_ppo_trains_both_modules(tiny_settings: tuple[str, ...], in_users_ray: UsersRay):
    said = in_users_ray(SCRIPT, *tiny_settings).splitlines()
    trained = [line for line in said if line.endswith(" trained")]
    assert trained == [f"{name} trained" for name in ("default", "sampler", "scalar")]
