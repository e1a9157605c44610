"""A full or forbidden disk: what was saved stays whole, one line says what was needed."""

import ctypes
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sft_rl.cli import main
from sft_rl.storage.checkpoint import load
from sft_rl.storage.files import SaveError
from sft_rl.storage.metrics_log import MetricsLog

DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2
CAPABILITIES_VERSION_3 = 0x20080522


@contextmanager
def small_files() -> Iterator[None]:
    """Let this process write no file over 8 KiB: less than a checkpoint, more than the settings."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def as_anybody() -> Iterator[None]:
    """Let root respect permissions, as everybody else has to."""
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION_3, 0)  # of this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits
    assert libc.capget(header, sets) == 0
    effective = sets[0]
    sets[0] = effective & ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert libc.capset(header, sets) == 0


def go_on(run: Path, *settings: str) -> int:
    """Go on with the run to 4 iterations."""
    more = ("training.num_iterations=4", "--out", str(run), "--resume")
    return main(["train", "swiss_roll", *settings, *more])


def contents(out: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.fixture
def run(
    tmp_path: Path, tiny_settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> Iterator[Path]:
    """A finished run of 2 iterations, ready to go on to 4."""
    out = tmp_path / "run"
    short = (*tiny_settings, "training.num_iterations=2")
    assert main(["train", "swiss_roll", *short, "--out", str(out)]) == 0
    capsys.readouterr()
    yield out
    for path in (out, *out.rglob("*")):
        path.chmod(0o755)


def test_no_room_for_a_checkpoint(
    run: Path, tiny_settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    with small_files():
        assert go_on(run, *tiny_settings) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sft-rl: cannot save {run}/checkpoints/000004: File too large (")
    assert " bytes needed, " in line
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["000002"]
    assert load(run / "checkpoints" / "000002").meta["iteration"] == 2
    assert go_on(run, *tiny_settings) == 0
    assert load(run / "checkpoints" / "000004").meta["iteration"] == 4


def test_no_permission_for_a_checkpoint(
    run: Path, tiny_settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    (run / "checkpoints").chmod(0o555)
    before = contents(run / "checkpoints")
    with as_anybody():
        assert go_on(run, *tiny_settings) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot save {run}/checkpoints/000004: Permission denied (" in line
    assert contents(run / "checkpoints") == before


def test_no_permission_for_the_run(
    run: Path, tiny_settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    for path in (*run.rglob("*"), run):
        path.chmod(0o555)
    before = contents(run)
    with as_anybody():
        assert go_on(run, *tiny_settings) == 2
    said = capsys.readouterr().err
    assert said == f"sft-rl: --out: cannot write to {run}: Permission denied\n"
    assert contents(run) == before


def test_no_room_for_samples(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("points.npy", "points.csv"):
        out = tmp_path / name
        with small_files():
            assert main(["sample", str(run), "--num", "5000", "--out", str(out)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"cannot save {out}: " in line
        assert not out.exists()


def test_no_room_for_the_metrics():
    full = Path("/dev/full")  # every write to it finds no space
    with pytest.raises(SaveError, match=r"cannot save /dev/full: No space left on device \(\d+ "):
        MetricsLog(full).append({"iteration": 1, "seconds": 0.5})
