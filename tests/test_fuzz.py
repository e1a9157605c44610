"""Any input at the readers: read rightly, or refused in one line; `benchmarks.fuzz` tries more."""

import pytest

from benchmarks.fuzz import READERS, fuzz


@pytest.mark.parametrize("reader", READERS)
def test_any_input_is_read_or_refused_in_one_line(reader: str):
    fuzz(reader, examples=50 if READERS[reader].subject == "points" else 25)
