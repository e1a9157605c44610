"""TensorBoard's events, read back from their files as TensorBoard does."""

import io
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from sft_rl.storage.events import EventLog
from sft_rl.storage.files import SaveError


def records(file: Path) -> Iterator[Event]:
    """Read TFRecords: length, its checksum, content, its checksum."""
    content, start = file.read_bytes(), 0
    while start < len(content):
        (length,) = struct.unpack_from("Q", content, start)
        yield Event.FromString(content[start + 12 : start + 12 + length])
        start += length + 16


def shown(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """What TensorBoard shows of a folder: values with their steps, by name.

    The start of a session takes away all that was there from its step on.
    """
    values: dict[str, list[tuple[int, Any]]] = defaultdict(list)
    for file in sorted(folder.iterdir()):
        for event in records(file):
            if event.session_log.status == SessionLog.START:
                for entries in values.values():
                    entries[:] = [entry for entry in entries if entry[0] < event.step]
            for value in event.summary.value:
                is_image = value.HasField("image")
                content = value.image.encoded_image_string if is_image else value.simple_value
                values[value.tag].append((event.step, content))
    return values


@pytest.mark.parametrize("saved", [0, 2])
def test_a_resumed_run_shows_every_iteration_once(tmp_path: Path, saved: int):
    before, after = EventLog(tmp_path / "events"), EventLog(tmp_path / "events")
    picture = np.zeros((8, 8, 3), np.uint8)
    before.add_picture(0, picture)
    for iteration in (1, 2, 3):
        before.add_row({"iteration": iteration, "reward_mean": 10.0 * iteration})
    before.write()
    after.resume(saved)
    if saved == 0:
        after.add_picture(0, picture)
    for iteration in range(saved + 1, 6):
        after.add_row({"iteration": iteration, "reward_mean": 10.0 * iteration})
        after.write()
    values = shown(tmp_path / "events")
    assert values["reward_mean"] == [(i, 10.0 * i) for i in range(1, 6)]
    assert [step for step, _ in values["samples"]] == [0]


def test_a_run_on_images_shows_its_numbers_and_the_samples(digits_run: Path):
    values = shown(digits_run / "tensorboard")
    metrics = pd.read_csv(digits_run / "metrics.csv")
    for name in ("critic_loss", "frechet_inf"):
        rows = metrics[["iteration", name]].dropna()
        assert [step for step, _ in values[name]] == rows["iteration"].tolist()
        np.testing.assert_allclose([value for _, value in values[name]], rows[name], rtol=1e-6)
    assert [step for step, _ in values["samples"]] == [0, 2, 3]
    for step, png in values["samples"]:
        kept = Image.open(digits_run / "samples" / f"iteration-{step:06d}.png")
        assert np.array_equal(kept, Image.open(io.BytesIO(png)))
        assert kept.size == (284, 284)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "events").write_text("a file where the folder should be")
    log = EventLog(tmp_path / "events")
    log.add_row({"iteration": 1, "reward_mean": 0.0})
    with pytest.raises(SaveError, match=r"cannot save .*events"):
        log.write()
