"""Freed memory is used again, without new pages from the system."""

import subprocess
import sys

import pytest

COUNT = """
import resource, sys
from sft_rl.jobs.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(50):
    b"1" * 2**26  # more than glibc would keep by itself
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_a_batch_gets_the_pages_of_the_one_before():
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", COUNT, how]))
        for how in ("keep", "give back")
    }
    assert faults["keep"] < 0.2 * faults["give back"]
