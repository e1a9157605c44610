"""A search in an object store: what one machine leaves there another finds."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pandas as pd
import pytest
from made_up import fail, finish, make

from sft_rl.errors import UserError
from sft_rl.storage.urls import Remote
from tuning.folder import SearchFolder
from tuning.report import write_report

URL = "memory://searches/a"


@pytest.fixture
def store() -> Iterator[fsspec.AbstractFileSystem]:
    store = fsspec.filesystem("memory")
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


def test_another_machine_finds_a_search_where_it_was_left(store: fsspec.AbstractFileSystem):
    search, here = make(num_trials=3), SearchFolder(URL)
    here.check_unused()
    here.begin()
    here.save(search)
    records, _ = here.records()
    for index in range(2):
        finish(search, records, index, search.planned(index), validation=0.8 - 0.1 * index)
        for name in ("summary.json", "config.yaml"):  # as the trial does by itself
            Remote(records.place).upload(records.folder, f"{index:03d}/{name}")
    fail(search, records, 2, search.planned(2))

    there = SearchFolder(URL)
    assert there.load() == search
    found, finals = there.records()
    assert found.all() == records.all()
    assert found.summary(1) == records.summary(1)
    assert found.summary(2) is None
    write_report(search, there.path, found, finals)
    there.publish()
    names = {Path(name).name for name in store.find("/searches/a", maxdepth=1)}
    assert {"search.yaml", "report.md", "results.csv", "pareto.png", "best-T2.yaml"} <= names
    assert len(pd.read_csv(store.open("/searches/a/results.csv"))) == 3

    store.pipe("/searches/a/notes.txt", b"a person's own")
    fail(search, found, 0, search.planned(0))  # the only one with 2 steps
    write_report(search, there.path, found, finals)
    there.publish()
    names = {Path(name).name for name in store.find("/searches/a", maxdepth=1)}
    assert "best-T2.yaml" not in names
    assert {"best-T4.yaml", "notes.txt"} <= names
    _, place, sessions = there.sessions()
    assert (place, sessions) == ("/searches/a/ray", 0)


def test_what_is_there_is_not_overwritten(store: fsspec.AbstractFileSystem):
    with pytest.raises(UserError, match=f"--resume: {URL} holds no search"):
        SearchFolder(URL).load()
    store.pipe("/searches/a/notes.txt", b"a person's own")
    with pytest.raises(UserError, match=f"--out: {URL} is not empty"):
        SearchFolder(URL).check_unused()
    SearchFolder(f"{URL}/b").save(make())
    asked = make(num_trials=9)
    assert SearchFolder(f"{URL}/new").going_on(asked) == asked
    assert SearchFolder(f"{URL}/b").going_on(asked) == asked, "more configurations"
    assert SearchFolder(f"{URL}/b").going_on(make(num_trials=1)) == make()
    with pytest.raises(UserError, match="holds a search with other seed; choose a new folder"):
        SearchFolder(f"{URL}/b").going_on(make(seed=3))
    with pytest.raises(UserError, match=f"--out: {URL} is not empty"):
        SearchFolder(URL).going_on(asked)
    with pytest.raises(UserError, match=f"sft-rl tune --resume {URL}/b"):
        SearchFolder(f"{URL}/b").check_unused()
