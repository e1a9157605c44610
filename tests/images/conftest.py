"""A tiny run on the digits."""

from pathlib import Path

import pytest

from sft_rl.cli import main


@pytest.fixture(scope="session")
def digits_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_digits: tuple[str, ...], _own_machine_room: None
) -> Path:
    """A finished run's folder."""
    out = tmp_path_factory.mktemp("digits") / "run"
    assert main(["train", "digits", *tiny_digits, "training.plots=true", "--out", str(out)]) == 0
    return out
