"""What is cached is what would be computed: damage, entries in another's place, who came first."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sft_rl.cli import main
from sft_rl.config import ResolvedConfig
from sft_rl.config.files import load_config
from sft_rl.data import Dataset
from sft_rl.errors import UserError
from sft_rl.metrics.classifier import cached_classifier
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.pretrained.full_step import FullStep
from sft_rl.runs.parts import full_step_network, measured_full_step
from sft_rl.runs.resolve import resolve
from sft_rl.seeding import num_threads
from sft_rl.storage.cache import cached, hash_of
from sft_rl.storage.checkpoint import Checkpoint, state_sha256
from sft_rl.storage.files import SaveError
from sft_rl.storage.mapped import cached_pictures

pytestmark = pytest.mark.usefixtures("cache")


def entries(cache: Path, kind: str) -> list[Path]:
    return sorted(p for p in (cache / kind).glob("*") if not p.name.startswith("."))


def test_a_run_does_not_depend_on_who_filled_the_cache(
    tiny_config: Callable[..., ResolvedConfig], cache: Path
):
    """One thread or two; whoever came first."""
    networks = {}
    for order in ((1, 2), (2, 1)):
        shutil.rmtree(cache, ignore_errors=True)
        for threads in order:
            config, data = resolve(tiny_config(f"learner.num_threads={threads}"))
            network, there = full_step_network(config, data)
            assert not there
            networks[order, threads] = state_sha256(network)
    assert networks[(1, 2), 1] == networks[(2, 1), 1]
    assert networks[(1, 2), 2] == networks[(2, 1), 2]


class Warnings(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


def test_an_entry_that_is_damaged_or_anothers_is_made_again(cache: Path):
    made: list[float] = []

    def value(number: float) -> Checkpoint:
        made.append(number)
        return Checkpoint({"x": {"y": torch.full((3,), number)}}, {"number": number})

    def read(number: float, warn: Warnings) -> tuple[float, bool]:
        entry, there = cached("kind", {"n": [number]}, lambda: value(number), warn=warn)
        assert entry.tensors["x"]["y"].tolist() == [number] * 3
        return entry.meta["number"], there

    said = Warnings()
    assert [read(1.0, said), read(2.0, said)] == [(1.0, False), (2.0, False)]
    assert [read(1.0, said), read(2.0, said)] == [(1.0, True), (2.0, True)]
    assert said == []
    one, two = (cache / "kind" / hash_of({"n": [number]}) for number in (1.0, 2.0))
    one.rename(cache / "aside")
    two.rename(one)
    (cache / "aside").rename(two)  # both are whole, each in the other's place
    assert [read(1.0, said), read(2.0, said)] == [(1.0, False), (2.0, False)]
    assert [read(1.0, said), read(2.0, said)] == [(1.0, True), (2.0, True)]
    assert [text.count("is an entry of another key; it is computed again") for text in said] == [
        1,
        1,
    ]
    for file in one.iterdir():
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        assert read(1.0, said) == (1.0, False)
    assert len(said) == 2 + 3
    assert made == [1.0, 2.0, 1.0, 2.0, 1.0, 1.0, 1.0]


def test_pictures_are_made_once_and_mapped(cache: Path):
    pictures, made = np.arange(48, dtype=np.uint8).reshape(4, 3, 2, 2), []

    def fill(images: np.ndarray) -> dict[str, int]:
        made.append(len(made))
        images[:] = pictures
        return {"grey": 3}

    def read(warn: Warnings, name: str = "a") -> np.ndarray:
        images, meta = cached_pictures({"name": name}, pictures.shape, fill, warn=warn)
        assert isinstance(images, np.memmap)
        assert meta == {"grey": 3}
        np.testing.assert_array_equal(images, pictures)
        return images

    said = Warnings()
    read(said)[:] = 0  # in this process only
    read(said)
    assert made == [0]
    (entry,) = entries(cache, "pictures")
    for name, damage in (
        ("images.npy", lambda content: content[:-1] + b"?"),
        ("images.npy", lambda content: content[:-1]),
        ("meta.json", lambda content: content[:9]),
        ("meta.json", lambda content: content.replace(b'"a"', b'"b"')),
    ):
        (entry / name).write_bytes(damage((entry / name).read_bytes()))
        read(said)
        read(said)
    assert len(made) == 5
    assert len(said) == 4
    assert said[-1].endswith("is an entry of another key; it is computed again")
    with pytest.raises(KeyboardInterrupt):
        cached_pictures({"name": "c"}, (2, 1, 4, 4), interrupted)
    with pytest.raises(SaveError, match="bytes needed"):
        cached_pictures({"name": "d"}, (2**40, 1, 2**10, 2**10), fill)
    left = [p for p in (cache / "pictures").iterdir() if p.suffix != ".lock"]
    assert left == [entry], "nothing half-made is left"


def test_what_was_used_longest_ago_makes_room_unless_it_is_in_use(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def read(name: str) -> np.ndarray:
        def fill(images: np.ndarray) -> dict[str, str]:
            images[:] = ord(name)
            return {"name": name}

        return cached_pictures({"name": name}, (1000, 1, 1, 1), fill)[0]

    def there() -> set[str]:
        names = (entry / "meta.json" for entry in entries(cache, "pictures"))
        return {json.loads(meta.read_text())["made"]["name"] for meta in names}

    monkeypatch.setenv("SFT_RL_PICTURES_GB", "3e-6")  # of two entries
    used = read("a")
    read("b")
    read("c")
    assert there() == {"a", "c"}, "the oldest is mapped"
    assert used.tobytes() == b"a" * 1000
    del used
    read("c")
    read("d")
    assert there() == {"c", "d"}
    used = read("d")
    assert main(["cache", "--clear", "pictures"]) == 0
    said = capsys.readouterr().out
    assert "1 entries removed, 1 are in use" in said
    assert "pictures" in said
    assert there() == {"d"}
    del used
    assert main(["cache", "--clear"]) == 0
    assert there() == set()
    assert main(["cache", "pretraned"]) == 2
    assert "did you mean 'pretrained'" in capsys.readouterr().err
    monkeypatch.setenv("SFT_RL_PICTURES_GB", "much")
    with pytest.raises(UserError, match="SFT_RL_PICTURES_GB: got 'much'"):
        read("e")


def interrupted(images: np.ndarray) -> dict[str, int]:
    raise KeyboardInterrupt


@pytest.fixture
def short_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier of a few steps, for time's sake."""
    monkeypatch.setattr("sft_rl.metrics.classifier.NUM_ITERATIONS", 20)


def measure(config: ResolvedConfig, data: Dataset, warn: Warnings) -> FullStep:
    network, _ = full_step_network(config, data, warn=warn)
    return measured_full_step(config, network, Evaluator(data, config.metrics), warn=warn)


@pytest.mark.usefixtures("short_classifier")
def test_a_damaged_full_step_entry_is_measured_again(tiny_digits: tuple[str, ...], cache: Path):
    """Numbers and pictures; and the classifier they are measured with."""
    config, data = resolve(load_config("digits", tiny_digits))
    said = Warnings()
    first = measure(config, data, said)
    assert first.samples.shape == (60, 1, 8, 8)
    assert first.samples.dtype == np.uint8
    again = measure(config, data, said)
    assert again.numbers == first.numbers
    np.testing.assert_array_equal(again.samples, first.samples)
    assert said == []
    (entry,) = entries(cache, "full_step")
    for name in ("meta.json", "samples.safetensors"):
        (entry / name).write_bytes((entry / name).read_bytes()[:-9])
        again = measure(config, data, said)
        assert again.numbers == first.numbers
        np.testing.assert_array_equal(again.samples, first.samples)
    assert len(said) == 2
    (classifier,) = entries(cache, "classifier")
    (classifier / "classifier.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="classifier.* is damaged .*; it is computed again"):
        restored, accuracy = cached_classifier(data)
    assert accuracy == cached_classifier(data)[1]
    assert not restored.training


@pytest.mark.usefixtures("short_classifier")
def test_the_classifier_is_the_same_with_any_number_of_threads(
    tiny_digits: tuple[str, ...], cache: Path
):
    _, data = resolve(load_config("digits", tiny_digits))
    states = []
    for threads in (1, 2):
        shutil.rmtree(cache, ignore_errors=True)
        with num_threads(threads):
            states.append(state_sha256(cached_classifier(data)[0]))
    assert states[0] == states[1]


class Scaled(nn.Module):
    """Shares its weights with others that compute something else."""

    def __init__(self, scale: float, *, hidden: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        nn.init.eye_(self.layer.weight)
        self.scale = scale
        self.register_buffer("shift", torch.tensor(0.0 if hidden else scale))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.scale * self.layer(x) + self.shift


@pytest.mark.parametrize("hidden", [True, False])
def test_networks_from_python_that_share_their_weights_are_measured_each(
    tiny_settings: tuple[str, ...], hidden: bool
):
    numbers = []
    for scale in (0.5, 1.0):
        network = Scaled(scale, hidden=hidden)
        config, data = resolve(load_config("swiss_roll", tiny_settings), network=network)
        built, _ = full_step_network(config, data, own=network)
        measured = measured_full_step(config, built, Evaluator(data, config.metrics))
        numbers.append(measured.numbers["sliced_wasserstein"])
    assert numbers[0] != numbers[1]
