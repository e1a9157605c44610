"""A full or forbidden disk: what was saved stays whole, one line says what was needed."""

import ctypes
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sft_rl.cli import main
from sft_rl.storage.checkpoint import load
from sft_rl.storage.files import SaveError
from sft_rl.storage.metrics_log import MetricsLog

DROP_CAPABILITY, DAC_OVERRIDE, DAC_READ_SEARCH = 24, 1, 2


def small_files() -> None:
    """Let this process write no file over 4 KiB: less than a policy, more than a metrics row."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def as_anybody() -> None:
    """Let root respect permissions, as everybody else has to."""
    libc = ctypes.CDLL(None)
    for capability in (DAC_OVERRIDE, DAC_READ_SEARCH):
        libc.prctl(DROP_CAPABILITY, capability, 0, 0, 0)


def train(
    out: Path, *settings: str, before: Callable[[], None]
) -> subprocess.CompletedProcess[str]:
    """Go on with a run, in a process of its own that is changed before it starts."""
    command = [sys.executable, "-m", "sft_rl", "train", "swiss_roll", *settings]
    return subprocess.run(
        [*command, "--out", str(out), "--resume"],
        capture_output=True,
        text=True,
        preexec_fn=before,
    )


def contents(out: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.fixture
def run(tmp_path: Path, tiny_settings: tuple[str, ...]) -> Iterator[Path]:
    """A finished run of 2 iterations, ready to go on to 4."""
    out = tmp_path / "run"
    short = (*tiny_settings, "training.num_iterations=2")
    assert main(["train", "swiss_roll", *short, "--out", str(out)]) == 0
    yield out
    for path in (out, *out.rglob("*")):
        path.chmod(0o755)


def test_no_room_for_a_checkpoint(run: Path, tiny_settings: tuple[str, ...]):
    more = (*tiny_settings, "training.num_iterations=4")
    full = train(run, *more, before=small_files)
    assert full.returncode == 1
    (line,) = full.stderr.splitlines()
    assert line.startswith(f"sft-rl: cannot save {run}/checkpoints/000004: File too large (")
    assert " bytes needed, " in line
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["000002"]
    assert load(run / "checkpoints" / "000002").meta["iteration"] == 2
    assert main(["train", "swiss_roll", *more, "--out", str(run), "--resume"]) == 0
    assert load(run / "checkpoints" / "000004").meta["iteration"] == 4


def test_no_permission_for_a_checkpoint(run: Path, tiny_settings: tuple[str, ...]):
    (run / "checkpoints").chmod(0o555)
    before = contents(run / "checkpoints")
    more = (*tiny_settings, "training.num_iterations=4")
    forbidden = train(run, *more, before=as_anybody)
    assert forbidden.returncode == 1
    (line,) = forbidden.stderr.splitlines()
    assert f"cannot save {run}/checkpoints/000004: Permission denied (" in line
    assert contents(run / "checkpoints") == before


def test_no_permission_for_the_run(run: Path, tiny_settings: tuple[str, ...]):
    for path in (*run.rglob("*"), run):
        path.chmod(0o555)
    before = contents(run)
    more = (*tiny_settings, "training.num_iterations=4")
    forbidden = train(run, *more, before=as_anybody)
    assert forbidden.returncode == 2
    assert forbidden.stderr == f"sft-rl: --out: cannot write to {run}: Permission denied\n"
    assert contents(run) == before


def test_no_room_for_the_metrics():
    full = Path("/dev/full")  # every write to it finds no space
    with pytest.raises(SaveError, match=r"cannot save /dev/full: No space left on device \(\d+ "):
        MetricsLog(full).append({"iteration": 1, "seconds": 0.5})
