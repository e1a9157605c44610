"""Any bytes at the readers of settings, points and checkpoints: read, or refused in one line.

``python -m benchmarks.fuzz --seconds 600`` tries each subject for so long, with ever new examples.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import strategies as st

from benchmarks import fuzz_points
from benchmarks.fuzz_points import DAMAGES, TABLES, read_damaged, read_lines, read_table
from sft_rl.config import Config
from sft_rl.config.files import load_config
from sft_rl.config.plain_yaml import read_file, read_text, read_value
from sft_rl.errors import UserError
from sft_rl.storage.checkpoint import FORMAT, MANIFEST, META, load

EXAMPLES = 50
"""In a round."""
SPECIAL = list("[]{}:,-?|>&*!%@`'\"#~ \n\ta0.e\\xuU\u2028é")
KEYS = ("seed", "model.unet", "data.path", "value.widths", "data.flip", "options.a", "device")
TEXTS = st.text(alphabet=st.sampled_from(SPECIAL), max_size=60) | st.text(max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
CONTENTS = st.binary(max_size=200) | JSON.map(lambda tree: json.dumps(tree).encode())
SAFETENSORS = JSON.map(lambda tree: json.dumps(tree).encode()).map(
    lambda header: len(header).to_bytes(8, "little") + header + bytes(16)
)
FILES = st.fixed_dictionaries(
    {MANIFEST: st.none() | CONTENTS, META: CONTENTS, "a.safetensors": CONTENTS | SAFETENSORS}
)


def refused_in_one_line(read: Callable[[], Any]) -> None:
    """Call a reader; what it refuses must be one line."""
    try:
        read()
    except UserError as error:
        assert len(str(error).splitlines()) == 1, str(error)


def read_settings(text: str) -> None:
    """Read a text as a file, as a value, and as the setting of every kind of field."""
    refused_in_one_line(lambda: read_text(text, Config))
    refused_in_one_line(lambda: read_value(text, Config))
    for key in KEYS:
        refused_in_one_line(lambda key=key: load_config("swiss_roll", [f"{key}={text}"]))  # type: ignore[misc]


def read_settings_file(content: bytes) -> None:
    """Read bytes as a file of settings."""
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(content)
        file.flush()
        refused_in_one_line(lambda: read_file(file.name, Config))


def read_checkpoint(files: dict[str, bytes | None]) -> None:
    """Read bytes as a checkpoint; without a manifest it gets one whose hashes are right."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in files.items():
            if content is not None:
                (folder / file).write_bytes(content)
        if files[MANIFEST] is None:
            hashes = {f: hashlib.sha256(c).hexdigest() for f, c in files.items() if c is not None}
            (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "sha256": hashes}))
        refused_in_one_line(lambda: load(folder))


@dataclass(frozen=True)
class Reader:
    """What is tried.

    Attributes:
        subject: What is read.
        read: Takes an example; raises whatever must not happen.
        examples: Where they come from.
    """

    subject: str
    read: Callable[[Any], None]
    examples: Any


READERS = {
    "settings": Reader("settings", read_settings, TEXTS),
    "files of settings": Reader("settings", read_settings_file, CONTENTS | TEXTS.map(str.encode)),
    "tables of points": Reader("points", read_table, TABLES),
    "lines of points": Reader("points", read_lines, fuzz_points.TEXTS),
    "damaged points": Reader("points", read_damaged, DAMAGES),
    "checkpoints": Reader("checkpoints", read_checkpoint, FILES),
}


def fuzz(name: str, *, examples: int, seed: int | None = None) -> None:
    """Try a reader on so many examples; always the same ones if there is no seed."""
    reader = READERS[name]
    given: Any = hypothesis.given(reader.examples)
    options: Any = hypothesis.settings(
        max_examples=examples,
        derandomize=seed is None,
        deadline=None,
        database=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],  # on a busy machine
    )
    seeded: Any = hypothesis.seed(seed) if seed is not None else lambda same: same
    seeded(options(given(reader.read)))()


def main() -> None:
    """Fuzz every reader for some time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="for each subject")
    parser.add_argument("--subject", choices=sorted({r.subject for r in READERS.values()}))
    args = parser.parse_args()
    for name, reader in READERS.items():
        if args.subject not in (None, reader.subject):
            continue
        share = args.seconds / sum(one.subject == reader.subject for one in READERS.values())
        begun, rounds = time.monotonic(), 0
        while time.monotonic() - begun < share:
            fuzz(name, examples=EXAMPLES, seed=rounds)
            rounds += 1
        print(f"{name}: {EXAMPLES * rounds} examples, none failed", flush=True)


if __name__ == "__main__":
    main()
