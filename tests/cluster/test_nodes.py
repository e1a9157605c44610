"""Nodes are compared before a job begins, and asked whether they have room."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
import sft_rl
from sft_rl.config import RayConfig, RolloutConfig
from sft_rl.distributed.session import RaySession
from sft_rl.errors import UserError

with RaySession(RayConfig(address=sys.argv[1]), RolloutConfig()) as session:
    session.wait()
    print("joined")
for version, num in (("9.9.9", 1), (sft_rl.__version__, 7)):
    sft_rl.__version__ = version
    try:
        with RaySession(RayConfig(address=sys.argv[1]), RolloutConfig(num_workers=num)) as session:
            session.wait()
    except UserError as error:
        print(error)
"""


@pytest.mark.ray
def test_a_mismatch_and_a_lack_of_room_are_named(ray_cluster):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, ray_cluster.gcs],
        env=ray_cluster.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    joined, mismatch, room = done.stdout.splitlines()
    assert joined == "joined"
    assert mismatch.startswith("ray.address: node 127.0.0.1 (")
    assert ") has sft_rl 0.1.0, this process has 9.9.9; give all nodes the same image" in mismatch
    assert room.startswith("rollout.num_workers: no room for 7 workers with 1 CPU each: 127.0.0.1")
