"""`sft-rl` in processes of its own that cost no imports: a server that did them once forks them.

A server of its own, because forking the process of the tests, with its threads, is not safe.
Whatever starts a Ray, or joins one, is started in the usual way: it must set the environment
before it imports Ray.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from sft_rl.algorithms import Networks
from sft_rl.algorithms.sft_pg import SFTPG
from sft_rl.cli import main
from sft_rl.types import Trajectories, Transitions

PROCESSES = pytest.mark.xdist_group("processes")
"""Of tests that use the server: one row of them needs one server."""
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["scipy.optimize", "scipy.spatial", "sft_rl.jobs.commands"])


class Mortal(SFTPG):
    """SFT-PG that sends its own process a signal in the midst of an iteration, if told to."""

    iteration = last_iteration = 0
    number = signal.SIGKILL

    def prepare(self, trajectories: Trajectories, networks: Networks) -> Transitions:
        self.iteration += 1
        if self.iteration == self.last_iteration:
            os.kill(os.getpid(), self.number)
        return super().prepare(trajectories, networks)


MORTAL = f"algorithm={Mortal.__module__}:{Mortal.__name__}"


def say_to(file: Path, arguments: Sequence[str], **environment: str) -> None:
    """Be `sft-rl` with some arguments; what it says goes to a file."""
    os.environ.update(environment)  # the server's is that of its first test
    with file.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.exit(main(list(arguments)))


def _mortal(arguments: Sequence[str], said: Path, iteration: int, number: signal.Signals) -> None:
    for stream, name in ((1, "out"), (2, "err")):
        with (said / name).open("w") as file:
            os.dup2(file.fileno(), stream)
    Mortal.last_iteration, Mortal.number = iteration, number
    sys.exit(main(list(arguments)))


def start_mortal(
    *arguments: str, said: Path, iteration: int, number: signal.Signals
) -> ForkServerProcess:
    """Start a run, whose algorithm is MORTAL, that gets a signal in an iteration.

    What it says goes to ``out`` and ``err`` in the folder `said`.
    """
    process = SERVER.Process(target=_mortal, args=(arguments, said, iteration, number))
    process.start()
    return process


def interrupt(*arguments: str, said: Path, number: signal.Signals) -> tuple[int, str]:
    """Let a run get a signal in its iteration 31; return exit code and errors."""
    process = start_mortal(*arguments, said=said, iteration=31, number=number)
    process.join()
    assert process.exitcode is not None
    return process.exitcode, (said / "err").read_text()


def session_processes(session: int) -> list[int]:
    """Live processes of a session, as its leader's children are."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(folder.name))
    return found
