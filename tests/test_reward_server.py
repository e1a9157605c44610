"""Rewards over HTTP: a real server on loopback, and servers that do not behave."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sft_rl
from examples.reward_server import server
from sft_rl.config import Prompts, Samples, TermConfig
from sft_rl.config.files import load_config
from sft_rl.data.units import Units
from sft_rl.errors import UserError
from sft_rl.rewards import http
from sft_rl.rewards.reward import Reward, as_reward
from sft_rl.runs.resolve import resolve

UNITS = Units(Samples(shape=(2,), shift=(1.0, 0.0), scale=(2.0, 1.0), fingerprint=""))
X = torch.tensor([[0.5, 1.0], [-1.0, 2.0], [0.25, -1.0]])


def serving(running: ThreadingHTTPServer) -> Iterator[str]:
    """The address of a server that runs meanwhile."""
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/score"
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def first_coordinate(points: np.ndarray, *labels: np.ndarray) -> np.ndarray:
    return points[:, 0] + sum(labels)


@pytest.fixture
def url() -> Iterator[str]:
    yield from serving(server(first_coordinate))


ANSWERS: list[tuple[int, str]] = []
"""What the odd server says next; the last for ever. Status 0 breaks off."""


class Odd(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status, body = ANSWERS.pop(0) if len(ANSWERS) > 1 else ANSWERS[0]
        if status == 0:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Location", "http://127.0.0.1:1/")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def odd_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 0.001)
    yield from serving(ThreadingHTTPServer(("127.0.0.1", 0), Odd))


def reward(url: str, num_classes: int = 0, **settings: Any) -> Reward:
    term = TermConfig(use=url, name="served", **settings)
    return as_reward(term, None, {}, units=UNITS, num_classes=num_classes)


def test_a_server_scores_samples_in_the_datas_units(url: str):
    assert reward(url)(X).tolist() == [2.0, -1.0, 1.5]
    assert reward(url, num_classes=9)(X, torch.tensor([1, 2, 3])).tolist() == [3.0, 1.0, 4.5]


def test_a_server_is_told_prompts_and_their_metadata():
    def score(points: np.ndarray, prompts: np.ndarray, metadata: np.ndarray) -> np.ndarray:
        wanted = [json.loads(row)["digit"] for row in metadata]
        return points[:, 0] + wanted + [len(prompt) for prompt in prompts]

    prompts = Prompts(
        texts=("a two", "a seven"), metadata=({"digit": 2}, {"digit": 7}), num_tokens=1, width=1
    )
    units = Units(UNITS.samples.model_copy(update={"prompts": prompts}))
    for url in serving(server(score)):
        served = as_reward(TermConfig(use=url, name="served"), None, {}, units=units, num_classes=3)
        assert served(X, torch.tensor([1, 0, 1])).tolist() == [16.0, 6.0, 15.5]


def test_a_token_comes_from_the_environment(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REWARD_TOKEN", "secret")
    with pytest.raises(UserError, match="answered 401: the token is wrong or missing"):
        reward(url)(X)
    with pytest.raises(UserError, match="the variable MY_TOKEN is not set"):
        reward(url, token_variable="MY_TOKEN")
    monkeypatch.setenv("MY_TOKEN", "secret")
    assert reward(url, token_variable="MY_TOKEN")(X).tolist() == [2.0, -1.0, 1.5]


def test_what_is_transient_is_tried_again(odd_url: str):
    good = json.dumps({"scores": [1, 2, 3]})
    ANSWERS[:] = [(503, "later"), (0, ""), (200, good)]
    assert reward(odd_url)(X).tolist() == [1.0, 2.0, 3.0]
    ANSWERS[:] = [(503, "later")]
    with pytest.raises(UserError, match="answered 503: later, 5 times in a row"):
        reward(odd_url)(X)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((500, "no model\nTraceback"), "answered 500: no model$"),
        ((302, ""), "answered 302"),
        ((200, "<html>"), "holds no scores; expected"),
        ((200, '{"scores": [1, 2]}'), r"returned shape \(2,\) for 3 samples"),
        ((200, '{"scores": [1, NaN, 2]}'), "returned nan, .* sample 1 of 3"),
    ],
)
def test_what_is_not_is_one_line(odd_url: str, answer: tuple[int, str], message: str):
    ANSWERS[:] = [answer, (200, '{"scores": [1, 2, 3]}')]
    with pytest.raises(UserError, match=message) as error:
        reward(odd_url)(X)
    assert "\n" not in str(error.value)


def test_a_server_that_is_too_slow_is_one_line():
    held = threading.Event()

    def slow(points: np.ndarray) -> np.ndarray:
        held.wait()
        return points[:, 0]

    for url in serving(server(slow)):
        with pytest.raises(UserError, match=r"took more than 0.05 s; see reward.terms.timeout_s"):
            reward(url, timeout_s=0.05)(X)
        held.set()


def test_nobody_there_is_told_before_anything_starts(tiny_settings: tuple[str, ...]):
    with server(first_coordinate) as gone:
        port = gone.server_port
    own = f"reward.terms=[critic, {{use: 'http://127.0.0.1:{port}/'}}]"
    with pytest.raises(UserError, match=r"127.0.0.1:\d+/ cannot be reached: Connection refused"):
        resolve(load_config("swiss_roll", [*tiny_settings, own]))
    secret = "reward.terms=[{use: 'http://me:word@127.0.0.1/'}]"
    with pytest.raises(UserError, match="an address with a password"):
        load_config("swiss_roll", [secret])


def test_a_run_with_a_server_is_that_with_the_function(
    tmp_path: Path, tiny_settings: tuple[str, ...], url: str
):
    """In batches of 10, three at a time; the order is the samples'."""
    terms: list[dict[str, Any]] = [
        {"use": sft_rl.reward(wants="numpy")(first_coordinate), "name": "right"},
        {"use": url, "name": "right", "num_scorers": 3, "batch_size": 10},
    ]
    hashes = {
        sft_rl.fine_tune(
            load_config("swiss_roll", tiny_settings),
            reward=["critic", term],
            out=tmp_path / str(index),
            observer=None,
        ).metrics["policy_sha256"]
        for index, term in enumerate(terms)
    }
    assert len(hashes) == 1
