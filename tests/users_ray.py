"""A user's Python, such as a notebook's, in which a Ray runs: what is given to it runs there."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from processes import session_processes
from real_cluster import wait_for

NUM_CPUS = max(2, os.cpu_count() or 1)
NOTEBOOK = f"""
import contextlib, io, json, os, runpy, sys, traceback

from sft_rl.cli import main
from sft_rl.distributed.session import set_local_environment

set_local_environment()
import ray

ray.init(
    address="local",
    num_cpus={NUM_CPUS},
    include_dashboard=False,
    dashboard_host="127.0.0.1",
    object_store_memory=2**28,
    log_to_driver=False,
)
home = os.getcwd()
for line in sys.stdin:
    program, *sys.argv[1:] = json.loads(line)
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            if program == "sft-rl":
                code = main(sys.argv[1:])
            else:
                sys.path.insert(0, os.path.dirname(program))
                runpy.run_path(program, run_name="__main__")
        except BaseException:
            code = 1
            traceback.print_exc()
    os.chdir(home)
    print(json.dumps([code, said.getvalue()]), flush=True)
"""


def without_ray() -> dict[str, str]:
    """Return the environment without what a Ray has left in this process, such as its token."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


class UsersRay:
    """That Python; called, it runs something.

    Args:
        process: It.
        errors: What it writes there.
    """

    def __init__(self, process: "subprocess.Popen[str]", errors: IO[str]) -> None:
        self.process = process
        self.errors = errors

    def __call__(self, program: str | Path, *arguments: str) -> str:
        """Run ``sft-rl`` or a script; return what it said."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(program), *arguments]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            self.process.wait()
            self.errors.seek(0)
            raise AssertionError(self.errors.read())
        code, said = json.loads(answer)
        assert code == 0, said
        return str(said)


@contextmanager
def running() -> Iterator[UsersRay]:
    """Start it; nothing of it stays."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", NOTEBOOK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=without_ray(),
            start_new_session=True,
        )
        yield UsersRay(process, errors)
        process.communicate()
    wait_for(lambda: session_processes(process.pid) == [])
