"""An interrupted run goes on to the very policy it would have reached."""

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from processes import MORTAL, PROCESSES, interrupt, start_mortal
from real_cluster import wait_for

from sft_rl.cli import main
from sft_rl.config import ResolvedConfig
from sft_rl.config.files import load_config
from sft_rl.errors import UserError
from sft_rl.runs.changes import changes
from sft_rl.runs.checkpoints import checkpoints
from sft_rl.runs.folder import RunFolder
from sft_rl.runs.resolve import resolve
from sft_rl.storage.checkpoint import Checkpoint, DamagedCheckpoint, load, save

pytestmark = PROCESSES


def command(out: Path, *settings: str) -> list[str]:
    return ["train", "swiss_roll", *settings, "--out", str(out)]


def train(out: Path, *settings: str) -> int:
    return main(command(out, *settings))


def resolved(*settings: str) -> ResolvedConfig:
    return resolve(load_config("swiss_roll", settings))[0]


def policy_sha256(out: Path) -> str:
    return str(json.loads((out / "summary.json").read_text())["policy_sha256"])


def contents(out: Path) -> dict[Path, bytes]:
    """What is in a run's folder; the lock names whoever looked last."""
    return {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.fixture(scope="module")
def settings(tiny_settings: tuple[str, ...]) -> tuple[str, ...]:
    return (
        *tiny_settings,
        MORTAL,
        "training.num_iterations=120",
        "training.eval_every=40",
        "training.checkpoint_every=7",
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, settings: tuple[str, ...]) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train(out, *settings) == 0
    return out


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_after_a_signal(
    tmp_path: Path, settings: tuple[str, ...], undisturbed: Path, number: signal.Signals
):
    out = tmp_path / "run"
    code, errors = interrupt(*command(out, *settings), said=tmp_path, number=number)
    if number is signal.SIGTERM:
        assert code == 143
        assert "go on with --resume" in errors
        saved = max((out / "checkpoints").iterdir())
        assert pd.read_csv(out / "metrics.csv")["iteration"].max() == load(saved).meta["iteration"]
    else:
        assert code == -signal.SIGKILL
    assert not (out / "summary.json").exists()
    assert train(out, *settings, "--resume") == 0
    assert policy_sha256(out) == policy_sha256(undisturbed)
    assert pd.read_csv(out / "metrics.csv")["iteration"].tolist() == list(range(1, 121))


def cut(checkpoint: Path) -> None:
    content = (checkpoint / "policy.safetensors").read_bytes()
    (checkpoint / "policy.safetensors").write_bytes(content[:-1])


def other_shapes(group: str, checkpoint: Path) -> None:
    """Whole, by its hashes, but of tensors with a row less."""
    found = load(checkpoint)
    shorter = {k: t[1:] if t.ndim else t for k, t in found.tensors[group].items()}
    save(checkpoint, Checkpoint({**found.tensors, group: shorter}, found.meta))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "is damaged"),
        (partial(other_shapes, "policy"), "does not fit the run"),
        (partial(other_shapes, "critic_optimizer"), "does not fit the run"),
    ],
    ids=["cut", "other shapes", "of an optimiser"],
)
def test_over_a_damaged_checkpoint(
    tmp_path: Path,
    settings: tuple[str, ...],
    undisturbed: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    said: str,
):
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    (out / "summary.json").unlink()
    damage(max((out / "checkpoints").iterdir()))
    assert train(out, *settings, "--resume", "training.keep_checkpoints=4") == 0
    assert said in capsys.readouterr().out
    assert policy_sha256(out) == policy_sha256(undisturbed)
    assert pd.read_csv(out / "metrics.csv")["iteration"].tolist() == list(range(1, 121))


def test_resume_auto_starts_goes_on_and_is_finished(
    tmp_path: Path,
    settings: tuple[str, ...],
    undisturbed: Path,
    capsys: pytest.CaptureFixture[str],
):
    out = tmp_path / "run"
    auto = (*settings, "--resume", "auto")
    code, _ = interrupt(*command(out, *auto), said=tmp_path, number=signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert train(out, *auto) == 0
    assert policy_sha256(out) == policy_sha256(undisturbed)
    before = contents(out)
    capsys.readouterr()
    assert train(out, *auto) == 0
    assert capsys.readouterr().out == f"{out} is finished, nothing to do\n"
    assert contents(out) == before


def test_killed_before_the_first_checkpoint(
    tmp_path: Path, tiny_settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    args = ["train", "swiss_roll", *tiny_settings, "--out", "run", "--resume", "auto"]
    run_folder = RunFolder.create(Path("run"), resolved(*tiny_settings))
    (run_folder.path / "metrics.csv").write_text("iteration,sec")
    (run_folder.path / "checkpoints" / ".000002.1.tmp").mkdir()
    assert main(args) == 0
    assert pd.read_csv("run/metrics.csv")["iteration"].tolist() == [1, 2, 3]
    assert sorted(p.name for p in Path("run/checkpoints").iterdir()) == ["000002", "000003"]


def test_more_iterations_of_a_finished_run_are_not_finished_before_their_end(
    tmp_path: Path, settings: tuple[str, ...], undisturbed: Path
):
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    more = resolved(*settings, "training.num_iterations=130")
    store = RunFolder.open(out)
    assert not store.is_finished(more)
    store.resume(more)
    assert not RunFolder.open(out).is_finished(more)


def test_a_run_takes_over_anothers_checkpoint_with_a_rate_of_its_own(
    tmp_path: Path, settings: tuple[str, ...], undisturbed: Path
):
    """The short form of a population's exchange; the long one is in tests/tuning/test_tune.py."""
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    start = load(checkpoints(undisturbed)[0])
    other = resolved(*settings, "policy.learning_rate=0.01")
    store = RunFolder.open(out)
    own_id = store.config.run_id
    store.take_over(other, start)
    opened = RunFolder.open(out)
    assert (opened.config.run_id, opened.config.policy.learning_rate) == (own_id, 0.01)
    assert pd.read_csv(out / "metrics.csv")["iteration"].iloc[-1] == start.meta["iteration"]
    assert checkpoints(out) == []  # those of the rate before are none of this one's


def test_what_cannot_be_resumed_is_refused(
    tmp_path: Path,
    settings: tuple[str, ...],
    undisturbed: Path,
    capsys: pytest.CaptureFixture[str],
):
    before = contents(undisturbed)
    assert train(undisturbed, *settings, "--resume") == 0
    assert "is finished" in capsys.readouterr().out
    changed = ("training.num_iterations=130", "policy.learning_rate=0.5")
    assert train(undisturbed, *settings, *changed, "--resume") == 2
    error = capsys.readouterr().err
    rate = load_config("swiss_roll", settings).policy.learning_rate
    assert f"policy.learning_rate was {rate}, now 0.5" in error
    assert "num_iterations" not in error
    moons = ["train", "two_moons", *settings, "--out", str(undisturbed), "--resume"]
    assert main(moons) == 2
    assert "preset was 'swiss_roll', now 'two_moons'" in capsys.readouterr().err
    assert contents(undisturbed) == before
    assert train(tmp_path, *settings, "--resume") == 2
    assert "holds no run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_changes_no_result_is_free_to_change(settings: tuple[str, ...]):
    before = resolved(*settings).model_dump()
    free = ("training.checkpoint_every=3", "rollout.placement=pack", "model.channels_last=true")
    assert changes(before, resolved(*settings, *free).model_dump()) == []
    longer = resolved(*settings, "training.num_iterations=130").model_dump()
    assert changes(before, longer) == []
    assert changes(longer, before) == ["training.num_iterations was 130, now 120"]
    other = resolved(*settings, "data.seed=1").model_dump()
    assert "the data are others" in changes(before, other)


def test_a_run_of_another_version_is_refused(
    tmp_path: Path,
    settings: tuple[str, ...],
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    (out / "summary.json").unlink()
    before = contents(out)
    monkeypatch.setattr("sft_rl.__version__", "9.9.9")
    with pytest.raises(UserError, match=r"was made by sft-rl 0\.1\.0, this is 9\.9\.9"):
        RunFolder.open(out).resume(resolved(*settings))
    assert contents(out) == before


def test_of_a_runs_checkpoints_no_damaged_one_is_loaded(tmp_path: Path, undisturbed: Path):
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    warnings: list[str] = []
    store = RunFolder(out, RunFolder.open(out).config, warn=warnings.append)
    newest, older = sorted((out / "checkpoints").iterdir(), reverse=True)
    generator = torch.Generator().manual_seed(0)
    for file in sorted(newest.iterdir()):
        content = file.read_bytes()
        flips = torch.randint(len(content) * 8, (200,), generator=generator).tolist()
        damaged = [content[: len(content) * i // 20] for i in range(20)]
        damaged += [flipped(content, position) for position in flips]
        for text in damaged:
            file.write_bytes(text)
            with pytest.raises(DamagedCheckpoint):
                load(newest)
        assert store.latest().meta["iteration"] == int(older.name)
        assert warnings.pop().endswith(f"; going back to {older.name}")
        file.write_bytes((older / file.name).read_bytes())  # of another checkpoint
        if file.read_bytes() != content:
            with pytest.raises(DamagedCheckpoint):
                load(newest)
        file.write_bytes(content)
    assert store.latest().meta["iteration"] == int(newest.name)


def flipped(content: bytes, position: int) -> bytes:
    changed = bytearray(content)
    changed[position // 8] ^= 1 << position % 8
    return bytes(changed)


def test_two_processes_on_one_folder(
    tmp_path: Path, settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    run = command(out, *settings)
    first = start_mortal(*run, said=tmp_path, iteration=2, number=signal.SIGSTOP)
    wait_for((out / "metrics.csv").exists)
    try:
        assert train(out, *settings, "--resume") == 2
    finally:
        first.kill()
        first.join()
    assert f"in use by process {first.pid} on {socket.gethostname()}" in capsys.readouterr().err


def test_a_lock_ends_although_a_process_being_forked_has_its_file(tmp_path: Path):
    out = tmp_path / "run"
    store = RunFolder.create(out, resolved())
    with store.lock():
        own = Path("/proc/self/fd").iterdir()
        files = [file for file in own if file.resolve() == out / ".lock"]
        copy = os.dup(int(files[0].name))  # as a fork makes it; Ray's start forks at any time
    try:
        with store.lock():
            pass
    finally:
        os.close(copy)
