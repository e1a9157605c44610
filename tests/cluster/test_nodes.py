"""Nodes are compared before a job begins, and a mismatch is named."""

import subprocess
import sys

import pytest

SCRIPT = """
from benchmarks.scaling import cluster
from sft_rl.distributed.session import set_local_environment
set_local_environment()
with cluster(2):
    import sft_rl
    from sft_rl.distributed.nodes import check_versions
    from sft_rl.errors import UserError
    check_versions()
    print("same")
    sft_rl.__version__ = "9.9.9"
    try:
        check_versions()
    except UserError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.ray
def test_a_node_with_another_version_is_named():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    same, said = done.stdout.splitlines()
    assert same == "same"
    assert said.startswith("ray.address: node 127.0.0.1 (")
    assert ") has sft_rl 0.1.0, this process has 9.9.9; give all nodes the same image" in said
