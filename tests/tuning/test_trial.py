"""What a trial does before it trains: it takes the shared model, or one of its own."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from sft_rl.config import ResolvedConfig
from sft_rl.config.files import load_config
from sft_rl.data import load_dataset
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.runs.folder import RunFolder
from sft_rl.runs.resolve import resolve
from sft_rl.types import Metrics
from tuning.search import Search
from tuning.space import parse_space
from tuning.trial import full_step_model, resolve_base, share_pretrained


def search_over(preset: str, settings: Sequence[str]) -> Search:
    space = parse_space("rates", {"space": {"policy.learning_rate": {"loguniform": [1e-5, 1e-2]}}})
    return Search(preset, tuple(settings), space, num_trials=1, seed=0)


class Silent:
    """Counts the steps of pretraining."""

    def __init__(self) -> None:
        self.steps = 0

    def phase(self, name: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def progress(self, done: int, total: int, metrics: Metrics) -> None:
        self.steps += 1


def test_the_model_is_loaded_once_for_all_trials(
    tmp_path: Path,
    tiny_config: Callable[..., ResolvedConfig],
    tiny_settings: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
):
    config, observer = tiny_config(), Silent()
    shared = share_pretrained(*resolve_base(search_over(config.preset, tiny_settings)), observer)
    monkeypatch.setenv("SFT_RL_CACHE", str(tmp_path))  # as on a node that has never seen it
    observer = Silent()
    data = load_dataset(config.data)
    evaluator = Evaluator(data, config.metrics)
    network, full_step = full_step_model(RunFolder(tmp_path, config), shared, evaluator, observer)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, torch.as_tensor(shared["weights"][name]))
    assert full_step == shared["full_step"]
    assert observer.steps == 0
    assert list(tmp_path.iterdir()) == []

    other = tiny_config("model.width=24")
    full_step_model(RunFolder(tmp_path, other), shared, evaluator, observer)
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
    settings += ["sampler.start_time=10"]
    shared = share_pretrained(*resolve_base(search_over("digits", settings)), Silent())
    shutil.rmtree(tmp_path / "model")  # as on a node that has no such folder

    own = [*settings, "model.channels_last=true"]
    config, _ = resolve(load_config("digits", own), pretrained=shared["sections"])
    assert config.model.num_classes == 10
    assert config.model.channels_last
    assert config.noise.num_train_timesteps == 15
    config, data = resolve(load_config("digits", settings), pretrained=shared["sections"])
    network, _ = full_step_model(
        RunFolder(tmp_path, config), shared, Evaluator(data, config.metrics), Silent()
    )
    for name, tensor in unet.state_dict().items():
        assert torch.equal(network.unet.state_dict()[name], tensor)
