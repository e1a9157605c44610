"""Classifier-free guidance: a null class that is trained, two calls, and one that does for both."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from sft_rl.cli import main
from sft_rl.config.files import load_config
from sft_rl.data import load_dataset
from sft_rl.errors import UserError
from sft_rl.networks.guided import Guided
from sft_rl.pretrained.training import pretrain
from sft_rl.runs.parts import full_step_network
from sft_rl.runs.resolve import resolve
from sft_rl.seeding import generator
from sft_rl.storage.checkpoint import parameters_sha256

NULL = ("model.unet.num_class_embeds=11", "model.null_class=true")
W = 3.0


class ByLabel(nn.Module):
    """Predicts the square of its label, plus its time."""

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Map x (..., 2) at times and labels broadcastable to (...)."""
        return (labels.float() ** 2 + t)[..., None].expand_as(x)


def test_guidance_is_its_formula_on_any_grid():
    guided = Guided(ByLabel(), scale=W, null_label=10)
    labels, times = torch.tensor([0, 3, 9]), torch.tensor([[100.0], [7.0]])
    found = guided(torch.zeros(2, 3, 2), times, labels)
    wanted = 100.0 + W * (labels.float() ** 2 - 100.0) + times
    assert torch.equal(found, wanted[..., None].expand(2, 3, 2))
    one = guided(torch.zeros(3, 2), times[1, 0], labels)
    assert torch.equal(one, found[1])


def test_the_null_class_is_trained_by_dropping_labels(tiny_digits: tuple[str, ...]):
    def embeddings(dropout: float) -> Tensor:
        given = [*tiny_digits, *NULL, f"pretraining.label_dropout={dropout}"]
        config = load_config("digits", [*given, "pretraining.ema_decay=0", "pretraining.warmup=0"])
        data, device = load_dataset(config.data), torch.device("cpu")
        sections = config.model, config.noise, config.pretraining, data
        trained = pretrain(*sections, device=device, progress=lambda *_: None)
        return trained.unet.class_embedding.weight.detach()

    plain, dropped = embeddings(0.0), embeddings(0.5)
    start = plain[10]  # without dropping, nobody touches it
    assert (dropped[10] - start).abs().max() > 1e-3
    assert (plain[:10] - dropped[:10]).abs().max() > 1e-3


def test_one_call_learns_what_two_give(tiny_digits: tuple[str, ...]):
    given = [*tiny_digits, *NULL, "pretraining.learning_rate=0.005", "pretraining.batch_size=32"]
    config = load_config("digits", [*given, "pretraining.guidance_iterations=80"])
    data, device = load_dataset(config.data), torch.device("cpu")
    sections = config.model, config.noise, config.pretraining, data
    teacher = pretrain(*sections, device=device, progress=lambda *_: None).eval()
    with torch.no_grad():
        teacher.unet.class_embedding.weight[10] += 3.0
    guided = Guided(teacher, scale=W, null_label=10)
    kept = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    fitted = pretrain(*sections, device=device, progress=lambda *_: None, guided=guided).eval()
    source, labels = generator(1, "test"), torch.arange(10).repeat(20)
    x_0 = data.batch(200, source, labels)
    times = torch.randint(20, (200,), generator=source).float()
    with torch.no_grad():
        wanted = guided(x_0, times, labels)
        before, after = (
            (network(x_0, times, labels) - wanted).square().mean() for network in (teacher, fitted)
        )
    assert after < 0.25 * before
    assert all(torch.equal(kept[name], tensor) for name, tensor in teacher.state_dict().items())


def test_a_run_starts_from_the_guided_prediction_in_one_call(
    tiny_digits: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = [
        *tiny_digits,
        *NULL,
        "pretraining.label_dropout=0.2",
        "pretraining.guidance_iterations=5",
    ]
    given += ["metrics.distance=sliced_wasserstein", "metrics.full_step=off"]
    plain, _ = full_step_network(*resolve(load_config("digits", given)))
    guided = [*given, f"sampler.guidance_scale={W}"]
    resolved = resolve(load_config("digits", guided))
    start, _ = full_step_network(*resolved)
    again, _ = full_step_network(*resolved)
    states = [network.state_dict() for network in (plain, start, again)]
    assert states[0].keys() == states[1].keys()
    assert not all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert all(torch.equal(states[1][name], states[2][name]) for name in states[1])
    run = tmp_path / "run"
    assert main(["train", "digits", *guided, "--out", str(run)]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["base_sha256"] == parameters_sha256(start)
    words = ["sample", str(run), "--num", "2", "--out", str(tmp_path / "a.npy"), "--label"]
    assert main([*words, "10"]) == 2
    assert "classes 0 to 9" in capsys.readouterr().err
    assert main([*words, "9"]) == 0


def test_a_folder_of_diffusers_with_a_null_class(
    tmp_path: Path, tiny_unet: dict[str, object], tiny_digits: tuple[str, ...]
):
    model = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, num_class_embeds=11, **tiny_unet
    )
    DDPMPipeline(model, DDPMScheduler(num_train_timesteps=20)).save_pretrained(tmp_path / "model")
    given = [*tiny_digits, f"pretrained.path={tmp_path / 'model'}"]
    config, _ = resolve(load_config("digits", [*given, "model.null_class=true"]))
    assert config.model.num_classes == 10
    with pytest.raises(UserError, match="conditional on 11 classes, but the training images"):
        resolve(load_config("digits", given))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("sampler.guidance_scale=2",), "sampler.guidance_scale: 2.0 needs a model of classes"),
        (
            ("sampler.guidance_scale=2", "model.unet.num_class_embeds=10"),
            "sampler.guidance_scale: 2.0 needs a model of classes whose last label stands for none",
        ),
        (("pretraining.label_dropout=0.1",), "pretraining.label_dropout: 0.1 needs a model"),
        (("model.null_class=true",), "model.null_class: True needs a model of classes"),
        (("sampler.guidance_scale=-1",), "sampler.guidance_scale"),
    ],
)
def test_guidance_without_a_null_class_is_one_line(
    tiny_digits: tuple[str, ...], given: tuple[str, ...], words: str
):
    with pytest.raises(UserError, match=words) as error:
        resolve(load_config("digits", [*tiny_digits, *given]))
    assert "\n" not in str(error.value)
