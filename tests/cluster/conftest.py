"""The command line as a user of a cluster runs it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from real_cluster import RealCluster


@pytest.fixture
def sft_rl(
    ray_cluster: RealCluster, tmp_path: Path
) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run `sft-rl` in an empty folder with the cluster's address and token."""

    def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return ray_cluster.run(*arguments, cwd=tmp_path, **environment)

    return run
