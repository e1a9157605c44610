"""Terminals, pipes and signals as shells have them, in processes of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import PROCESSES, SERVER, say_to

from sft_rl.cli import main
from sft_rl.jobs.console import ConsoleObserver
from sft_rl.learning.preemption import Preempted, PreemptionNotice

pytestmark = PROCESSES

FEW = ("training.num_iterations=2", "metrics.num_samples=100", "metrics.num_excess=100")


def with_descriptors(target: str, folder: str, arguments: list[str], encoding: str) -> None:
    """Be `sft-rl` with a stdout that is a full device, a pipe without reader, or closed."""
    errors = os.open(f"{folder}/err", os.O_WRONLY | os.O_CREAT)
    os.dup2(errors, 2)
    if target == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    elif target == "left":
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 1)
    elif target == "closed":
        os.close(1)
        sys.stdout = sys.__stdout__ = None  # type: ignore[misc, assignment]
    else:
        os.dup2(os.open(f"{folder}/out", os.O_WRONLY | os.O_CREAT), 1)
        sys.stdout.reconfigure(encoding=encoding)  # type: ignore[union-attr]
    sys.exit(main(arguments))


@pytest.mark.parametrize(
    ("target", "code", "error"),
    [
        ("left", 0, ""),
        ("closed", 0, ""),
        ("full", 1, "sft-rl: cannot write output: No space left on device\n"),
    ],
)
def test_a_run_does_not_end_with_its_spectators(
    target: str, code: int, error: str, tmp_path: Path, tiny_settings: tuple[str, ...]
):
    out = tmp_path / "run"
    command = ["train", "swiss_roll", *tiny_settings, *FEW, "--out", str(out)]
    process = SERVER.Process(
        target=with_descriptors, args=(target, str(tmp_path), command, "utf-8")
    )
    process.start()
    process.join()
    assert (process.exitcode, (tmp_path / "err").read_text()) == (code, error)
    assert (out / "summary.json").exists()
    assert (out / "config.yaml").read_text().startswith("preset: swiss_roll\n")


@pytest.mark.parametrize("word", ["presets", "--help"])
@pytest.mark.parametrize("target", ["left", "closed", "full"])
def test_what_was_only_to_be_said_is_not_claimed(target: str, word: str, tmp_path: Path):
    process = SERVER.Process(target=with_descriptors, args=(target, str(tmp_path), [word], "utf-8"))
    process.start()
    process.join()
    assert process.exitcode == (1 if target == "full" else 0)


def test_a_terminal_of_ascii_shows_all_it_can(tmp_path: Path, tiny_settings: tuple[str, ...]):
    command = [
        "train",
        "swiss_roll",
        *tiny_settings,
        *FEW,
        "--out",
        str(tmp_path / "r\N{SNOWMAN}[/b]"),
    ]
    process = SERVER.Process(
        target=with_descriptors, args=("file", str(tmp_path), command, "ascii")
    )
    process.start()
    process.join()
    assert (process.exitcode, (tmp_path / "err").read_text()) == (0, "")
    said = (tmp_path / "out").read_text(encoding="ascii")
    assert "/r\\u2603[/b]: " in said


def test_names_are_no_markup_and_stay_on_their_line(capsys: pytest.CaptureFixture[str]):
    name = f"/{'long' * 40}/a[/b]c [bold]d"
    observer = ConsoleObserver()
    observer.warn(name)
    observer.table(name, {"[/b]": "[red]1"})
    said = capsys.readouterr().out
    assert f"warning: {name}\n{name}\n" in said
    assert "[/b]" in said.splitlines()[-2] and "[red]1" in said.splitlines()[-2]


SLOW_IMPORT = """
import os, signal
class Attribute:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass
class Mine:
    a = Attribute()
"""


def test_ctrl_c_in_an_import_is_one_line(tmp_path: Path, tiny_settings: tuple[str, ...]):
    (tmp_path / "slow_import.py").write_text(SLOW_IMPORT)
    command = ["train", "swiss_roll", *tiny_settings, "algorithm=slow_import:Mine"]
    file = tmp_path / "said"
    process = SERVER.Process(target=in_folder, args=(str(tmp_path), file, command))
    process.start()
    process.join()
    assert (process.exitcode, file.read_text()) == (130, "sft-rl: interrupted\n")


def in_folder(folder: str, file: Path, command: list[str]) -> None:
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    say_to(file, command)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("looped", "words"),
    [(False, "before fine-tuning began; start"), (True, "after fine-tuning; go on")],
)
def test_a_signal_says_where_it_came_and_how_to_go_on(
    number: signal.Signals, looped: bool, words: str
):
    expected = pytest.raises((Preempted, KeyboardInterrupt), match=f"{words} with --resume")
    with expected, PreemptionNotice() as notice:
        notice.in_loop = looped
        notice.in_loop = False
        os.kill(os.getpid(), number)
        signal.pause()


def test_hints_are_quoted_for_the_shell(
    tmp_path: Path, tiny_settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "by class é"
    out.mkdir()
    (out / "config.yaml").touch()
    assert main(["train", "swiss_roll", *tiny_settings, "--out", str(out)]) == 2
    assert f"(rm -r '{out}')" in capsys.readouterr().err


def test_the_console_script_as_a_shell_starts_it(tmp_path: Path):
    """One real process: what the forked ones do not show, the way from the interpreter's start."""
    command = f"{sys.executable} -m sft_rl presets | head -c 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1].endswith("0")
    assert done.stderr == ""
