"""A reward that a server scores, over HTTP.

A call is ``POST URL`` with an .npz file as body (``application/x-npz``, numpy's own, never
pickled): ``samples``, shape (B, *shape), in the data's units, float32 or of images uint8, and
``labels``, shape (B,), if the model is conditional: int64 of classes, or texts of prompts, with
their ``metadata``, B texts of JSON, if ``prompts.metadata`` names some. The answer is JSON,
``{"scores": [...]}``, or an .npy file (``application/x-npy``) of B numbers. A server that cannot
score answers with another status than 200 and says why in the first line of its body; 503 asks to
come again.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

import numpy as np

from sft_rl.errors import RunFailed, UserError

MAX_RETRIES = 4
FIRST_PAUSE_S = 0.5
"""Before the first retry; each of the next is twice as long."""
TRANSIENT = (502, 503, 504)
BYTES_A_SCORE, SPARE_BYTES = 64, 4096
"""An answer may have so many."""


class ServedReward:
    """Asks a server for scores; may be called by several threads at once.

    Args:
        url: Where it listens.
        name: What errors call it.
        timeout_s: Seconds that it may take for a call.
        token_variable: Environment variable that holds the bearer token, or None.

    Raises:
        UserError: If the variable is not set.
    """

    wants = "numpy"

    def __init__(
        self, url: str, *, name: str, timeout_s: float, token_variable: str | None = None
    ) -> None:
        self.url = url
        self.name = name
        self.timeout_s = timeout_s
        self.headers = {"Content-Type": "application/x-npz"}
        if token_variable is not None:
            token = os.environ.get(token_variable)
            if not token:
                raise UserError(f"reward: {name!r}: the variable {token_variable} is not set")
            self.headers["Authorization"] = f"Bearer {token}"
        # A redirect could take the token elsewhere.
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._was_reached = False

    def __call__(self, samples: np.ndarray, labels: Any = None, metadata: Any = None) -> Any:
        """Score samples in the data's units (B, *shape), shape (B,).

        Raises:
            UserError: If nobody listens at the first call.
            RunFailed: If the server says no, is too slow, or breaks off too often.
        """
        body, arrays = io.BytesIO(), {"samples": samples}
        if labels is not None:
            arrays["labels"] = np.asarray(labels)
        if metadata is not None:
            arrays["metadata"] = np.array([json.dumps(said) for said in metadata])
        np.savez(body, **arrays)  # type: ignore[arg-type]  # of numpy's own keyword
        for retry in range(MAX_RETRIES + 1):
            try:
                scores = self._ask(body.getvalue(), len(samples))
            except _Transient as error:
                failure = error
                if retry < MAX_RETRIES:
                    time.sleep(FIRST_PAUSE_S * 2**retry)
            else:
                self._was_reached = True
                return scores
        raise RunFailed(
            f"reward: {self.name!r}: {self.url} {failure}, {MAX_RETRIES + 1} times in a row"
        ) from failure

    def _ask(self, body: bytes, num: int) -> Any:
        request = urllib.request.Request(self.url, body, self.headers)
        what = f"reward: {self.name!r}: {self.url}"
        try:
            with self._opener.open(request, timeout=self.timeout_s) as answer:
                content = answer.read(SPARE_BYTES + BYTES_A_SCORE * num)
                kind = answer.headers.get_content_type()
        except urllib.error.HTTPError as error:
            said = error.read(SPARE_BYTES).decode(errors="replace").strip().splitlines()[:1]
            text = f"answered {error.code}{': ' if said else ''}{''.join(said)}"
            if error.code in TRANSIENT:
                raise _Transient(text) from error
            raise RunFailed(f"{what} {text}") from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise RunFailed(
                    f"{what} took more than {self.timeout_s:g} s; see reward.terms.timeout_s"
                ) from error
            is_down = isinstance(reason, ConnectionRefusedError) and not self._was_reached
            if isinstance(reason, ConnectionError | http.client.HTTPException) and not is_down:
                raise _Transient(f"broke off ({type(reason).__name__})") from error
            why = getattr(reason, "strerror", None) or reason
            raise UserError(f"{what} cannot be reached: {why}") from error
        try:
            if kind == "application/x-npy":
                return np.load(io.BytesIO(content), allow_pickle=False)
            return np.asarray(json.loads(content)["scores"], dtype=np.float32)
        except (ValueError, KeyError, TypeError) as error:
            raise RunFailed(
                f'{what} answered with {kind}, which holds no scores; expected {{"scores": […]}}'
            ) from error


class _Transient(Exception):
    """May go away by itself."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Follow none: the status becomes the error."""
