"""Who imports whom: the method runs without Ray, the command line starts without torch."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("sft_rl.trainer", ["ray"]),
        ("sft_rl.build", ["ray", "sklearn", "pandas", "matplotlib"]),
        ("envs", ["ray"]),
        ("sft_rl.cli", ["ray", "torch", "numpy"]),
        ("sft_rl.presets", ["ray", "torch"]),
    ],
)
def test_what_an_import_leaves_out(module: str, absent: list[str]):
    code = f"import sys, {module}; print([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
