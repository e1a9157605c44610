"""Work beside the main thread."""

import threading

import pytest

from sft_rl.errors import UserError
from sft_rl.jobs.beside import beside


def test_it_runs_in_another_thread_while_the_caller_goes_on():
    goes_on = threading.Event()

    def work() -> int:
        assert goes_on.wait(60)
        return threading.get_ident()

    result = beside(work)
    goes_on.set()
    assert result() != threading.get_ident()


def test_who_asks_for_the_result_gets_its_error():
    def work() -> None:
        raise UserError("metrics: out of luck")

    with pytest.raises(UserError, match="out of luck"):
        beside(work)()
