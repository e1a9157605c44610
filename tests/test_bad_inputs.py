"""A sample of the corpus of bad inputs: each ends as it must, in one line.

In this process, which costs no imports; what needs processes of its own, damaged runs, streams and
signals, is in other tests, and in ``python -m benchmarks.bad_inputs``.
"""

from pathlib import Path

import pytest

from benchmarks.bad_cases import MINE, Case, file_cases, settings_cases, word_cases
from benchmarks.bad_inputs import foreign, verdict
from sft_rl.cli import main

NUM = 150
CASES = [*settings_cases(), *word_cases(), *file_cases()]


def ends(case: Case, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What was wrong with the end of a case in a new folder, or nothing."""
    (folder / MINE).write_text("mine")
    if case.prepare is not None:
        case.prepare(folder)
    before = foreign(folder)
    try:
        code = main(list(case.words))
    except SystemExit as left:
        code = int(left.code or 0)
    except Exception as error:  # what a person would see as a traceback
        return f"traceback: {error!r}"
    said = capsys.readouterr()
    return verdict(case, code, said.out, said.err, before == foreign(folder))


def test_a_sample_of_bad_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    sample = CASES[:: len(CASES) // NUM][:NUM]
    assert len(CASES) > 1000 and len(sample) == NUM
    wrong = {}
    for number, case in enumerate(sample):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        if what := ends(case, folder, capsys):
            wrong[case.name] = what
    assert wrong == {}
