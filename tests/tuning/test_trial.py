"""What a trial does before it trains: it takes the shared model, or one of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sft_rl.config import Config
from sft_rl.data import load_dataset
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.types import Metrics
from tuning.trial import _full_step_model, share_pretrained


class Silent:
    """Counts the steps of pretraining."""

    def __init__(self) -> None:
        self.steps = 0

    def phase(self, name: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def progress(self, done: int, total: int, metrics: Metrics) -> None:
        self.steps += 1


def test_the_model_is_loaded_once_for_all_trials(
    tmp_path: Path, tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
):
    config, observer = tiny_config(), Silent()
    shared = share_pretrained(config, observer)
    monkeypatch.setenv("SFT_RL_CACHE", str(tmp_path))  # as on a node that has never seen it
    observer = Silent()
    data = load_dataset(config.data)
    evaluator = Evaluator(data, config)
    network, full_step = _full_step_model(config, data, shared, evaluator, observer)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, torch.as_tensor(shared["weights"][name]))
    assert full_step == shared["full_step"]
    assert observer.steps == 0
    assert list(tmp_path.iterdir()) == []

    other = tiny_config("model.width=24")
    _full_step_model(other, data, shared, evaluator, observer)
    assert observer.steps > 0
    assert list(tmp_path.iterdir()) != []
