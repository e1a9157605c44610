"""A scoring server: the other side of ``reward=http://…``, in the standard library and numpy.

    python -m examples.reward_server examples.reward_server:right_half --port 8765
    sft-rl train two_moons "reward.terms=[critic, {use: 'http://127.0.0.1:8765/', weight: 0.1}]"

Listens on loopback only. With the variable REWARD_TOKEN set it asks for that bearer token.
"""

import argparse
import hmac
import importlib
import io
import json
import os
import sys
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

Score = Callable[..., np.ndarray]
MAX_BYTES = 2**28


def right_half(points: np.ndarray) -> np.ndarray:
    """1 for points (B, 2) whose first coordinate is above 0.5, in the data's units, else 0."""
    return np.asarray(points[:, 0] > 0.5, dtype=np.float32)


def server(score: Score, port: int = 0) -> ThreadingHTTPServer:
    """Serve scores of samples on a port of loopback, by default a free one."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Answer one batch."""
            token = os.environ.get("REWARD_TOKEN")
            given = self.headers.get("Authorization", "")
            if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
                return self.answer(401, "the token is wrong or missing")
            length = int(self.headers.get("Content-Length", 0))
            if not 0 < length <= MAX_BYTES:
                return self.answer(413, f"a batch has up to {MAX_BYTES} bytes")
            try:
                with np.load(io.BytesIO(self.rfile.read(length)), allow_pickle=False) as arrays:
                    names = ("samples", "labels", "metadata")
                    scores = score(*(arrays[name] for name in names if name in arrays))
            except (ValueError, KeyError, zipfile.BadZipFile) as error:
                return self.answer(400, f"no batch of samples: {error}")
            return self.answer(200, json.dumps({"scores": np.asarray(scores).tolist()}))

        def answer(self, status: int, text: str) -> None:
            """Send a status and a body."""
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if status == 200 else "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("function", help="module:function from arrays to scores")
    parser.add_argument("--port", type=int, default=8765)
    options = parser.parse_args()
    sys.path.insert(0, os.getcwd())
    module, _, function = options.function.partition(":")
    with server(getattr(importlib.import_module(module), function), options.port) as running:
        print(f"scoring on http://127.0.0.1:{running.server_port}/")
        running.serve_forever()
