"""Several processes at once: one computes, the others wait; locks end with who held them."""

import errno
import fcntl
import os
import signal
import socket
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from processes import PROCESSES, SERVER, say_to
from real_cluster import wait_for

from sft_rl.errors import UserError
from sft_rl.storage.cache import Key, cached, hash_of
from sft_rl.storage.checkpoint import Checkpoint, save
from sft_rl.storage.locks import lock

pytestmark = [PROCESSES, pytest.mark.usefixtures("cache")]


def make_and_stop(cache: Path, kind: str, key: Key) -> None:
    """Begin an entry and stand still, as a process does that is about to be killed."""
    os.environ["SFT_RL_CACHE"] = str(cache)  # not that of the server's first test

    def make() -> Checkpoint:
        os.kill(os.getpid(), signal.SIGSTOP)
        raise AssertionError("killed before")

    cached(kind, key, make)


def test_a_process_that_makes_an_entry_is_waited_for_and_may_die(cache: Path):
    other = SERVER.Process(target=make_and_stop, args=(cache, "values", {"a": 1}))
    other.start()
    lock = cache / "values" / f".{hash_of({'a': 1})}.lock"
    wait_for(lambda: lock.exists() and lock.read_text() != "")
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        other.kill()

    made = Checkpoint({"x": {"y": torch.ones(2)}}, {})
    _, there = cached("values", {"a": 1}, lambda: made, warn=tell)
    assert not there
    assert told == [
        f"cache: waiting for process {other.pid} on {socket.gethostname()}, which makes values"
    ]
    assert cached("values", {"a": 1}, lambda: pytest.fail("it is there"))[1]
    other.join()


def test_several_cold_starts_pretrain_once(
    cache: Path, tmp_path: Path, tiny_settings: tuple[str, ...]
):
    command = ["pretrain", "swiss_roll", *tiny_settings]
    own = {"SFT_RL_CACHE": str(cache)}
    processes = [
        SERVER.Process(target=say_to, args=(tmp_path / str(i), command), kwargs=own)
        for i in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    said = [(tmp_path / str(i)).read_text() for i in range(4)]
    assert sum("found in the cache" not in text for text in said) == 1
    assert len([p for p in (cache / "pretrained").iterdir() if p.is_dir()]) == 1


def test_a_cache_that_cannot_be_written_is_said_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SFT_RL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cannot write to .*set SFT_RL_CACHE to"):
        cached("values", {"a": 1}, lambda: pytest.fail("nothing is made"))


def refuse(number: int, *_: object) -> NoReturn:
    raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_warned_of(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fcntl, "flock", lambda *_: refuse(number))
    told: list[str] = []
    with lock(tmp_path / ".lock", warn=told.append):
        assert told == [
            f"the file system of {tmp_path}/.lock has no locks ({os.strerror(number)}): see that "
            "only one process writes there"
        ]


def test_a_file_system_that_does_not_sync_folders_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    really = os.fsync

    def of_files(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir():
            refuse(errno.EINVAL)
        really(descriptor)

    monkeypatch.setattr(os, "fsync", of_files)
    with pytest.warns(UserWarning, match="does not sync folders"):
        save(tmp_path / "000001", Checkpoint({}, {}))
    monkeypatch.setattr(os, "fsync", lambda descriptor: refuse(errno.EIO))
    with pytest.raises(UserError, match="cannot save"):
        save(tmp_path / "000002", Checkpoint({}, {}))
