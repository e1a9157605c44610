"""What a trial does before it trains: it takes the shared model, or one of its own."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from sft_rl.config import Config
from sft_rl.config.files import load_config
from sft_rl.data import load_dataset
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.types import Metrics
from tuning.trial import _full_step_model, resolved, share_pretrained


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


def test_a_model_at_a_path_is_read_in_the_driver_alone(
    tmp_path: Path, tiny_unet: dict[str, object], tiny_digits: tuple[str, ...]
):
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, num_class_embeds=10, **tiny_unet
    )
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=15)).save_pretrained(tmp_path / "model")
    settings = [s for s in tiny_digits if not s.startswith(("model.", "noise."))]
    settings += [f"pretrained.path={tmp_path / 'model'}", "metrics.distance=sliced_wasserstein"]
    shared = share_pretrained(load_config("digits", settings), Silent())
    shutil.rmtree(tmp_path / "model")  # as on a node that has no such folder

    config = resolved(load_config("digits", [*settings, "model.channels_last=true"]), shared)
    assert config.model.num_classes == 10
    assert config.model.channels_last
    assert config.noise.num_train_timesteps == 15
    config = resolved(load_config("digits", settings), shared)
    data = load_dataset(config.data)
    network, _ = _full_step_model(config, data, shared, Evaluator(data, config), Silent())
    for name, tensor in unet.state_dict().items():
        assert torch.equal(network.unet.state_dict()[name], tensor)
