"""A sample of the corpus of bad inputs: each ends as it must, in one line."""

import os
from pathlib import Path

import pytest
from processes import PROCESSES, SERVER

from benchmarks import bad_inputs

pytestmark = PROCESSES

NUM = 150


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bad_inputs.make_run(tmp_path_factory.mktemp("runs"))


def test_a_sample_of_bad_inputs(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bad_inputs, "SERVER", SERVER)  # whose imports are done
    cases = bad_inputs.cases()
    sample = cases[:: len(cases) // NUM][:NUM]
    assert len(sample) == NUM
    cache = {"SFT_RL_CACHE": os.environ["SFT_RL_CACHE"]}
    wrong = {case.name: bad_inputs.run_case(case, run, **cache) for case in sample}
    assert {name: what for name, what in wrong.items() if what} == {}
