"""A pretraining that is interrupted goes on to the weights that it would have had."""

from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest

from sft_rl.config.files import load_config
from sft_rl.pretrained import training, unfinished
from sft_rl.runs.parts import full_step_network
from sft_rl.runs.resolve import resolve
from sft_rl.storage.checkpoint import state_sha256


def stop(done: int, total: int, metrics: dict[str, float]) -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("optimizer", "damaged"), [("adam", False), ("rmsprop", True)])
def test_an_interrupted_pretraining_gives_the_same_weights(
    optimizer: str,
    damaged: bool,
    tmp_path: Path,
    tiny_settings: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(unfinished, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(training, "REPORT_EVERY", 5)
    more = ("pretraining.num_iterations=8", f"pretraining.optimizer={optimizer}")
    config, data = resolve(load_config("swiss_roll", [*tiny_settings, *more]))
    monkeypatch.setenv("SFT_RL_CACHE", str(tmp_path / "undisturbed"))
    undisturbed, _ = full_step_network(config, data)
    monkeypatch.setenv("SFT_RL_CACHE", str(tmp_path / "interrupted"))
    with pytest.raises(KeyboardInterrupt):
        full_step_network(config, data, progress=stop)  # at 5
    (kept,) = (tmp_path / "interrupted" / "pretrained").glob(".*.unfinished")
    counted: list[int] = []
    again = partial(full_step_network, config, data, progress=lambda n, *_: counted.append(n))
    if damaged:
        (kept / "average.safetensors").write_bytes(b"")
        with pytest.warns(UserWarning, match="it begins again"):
            network, there = again()
    else:
        network, there = again()
    assert not there
    assert counted == ([5, 8] if damaged else [8])
    assert state_sha256(network) == state_sha256(undisturbed)
    assert not kept.exists()
