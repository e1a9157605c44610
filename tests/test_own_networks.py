"""Networks that a setting names: trained elsewhere or here, on any path, from a file or not."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sft_rl import check_resumes
from sft_rl.cli import main
from sft_rl.config.files import load_config
from sft_rl.errors import UserError
from sft_rl.runs.parts import full_step_network, network_of, networks_of
from sft_rl.runs.resolve import resolve

MODULE = '''
import torch
from torch import nn

class Net(nn.Module):
    """Velocity of a flow, at times 0..1, as other people's networks want them."""

    def __init__(self, width=16, num_classes=0):
        super().__init__()
        self.input = nn.Linear(3, width)
        self.label = nn.Embedding(max(num_classes, 1), width)
        self.output = nn.Linear(width, 2)

    def forward(self, x, t, label=None):
        assert t.shape == x.shape[:1]
        h = self.input(torch.cat([x, t[:, None] / 1000.0], dim=1))
        return self.output((h if label is None else h + self.label(label)).relu())

def net():
    return Net()

def trained():
    torch.manual_seed(7)
    return Net()

def by_class():
    return Net(num_classes=2)

def wide():
    network = Net()
    network.output = nn.Linear(16, 3)
    return network

def broken():
    raise RuntimeError("no such disk")

number = lambda: 3

def points():
    return torch.randn(200, 2, generator=torch.Generator().manual_seed(3)).numpy() * [1.0, 5.0]

class OfPictures(nn.Module):
    """Noise in pictures (N, 1, 8, 8); it looks at numbers, as no network without data can."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)
        self.register_buffer("scale", torch.tensor(1.0))

    def forward(self, x, t):
        assert float(t.min()) >= 0.0
        return self.layer(x) * self.scale

def of_pictures():
    return OfPictures()

class OfPicturesCritic(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1)) / max(float(x.detach().abs().max()), 1.0)

def critic_of_pictures():
    return OfPicturesCritic(64, 1)

def critic():
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))

class Value(nn.Module):
    """V(s_k) of plain batches."""

    def __init__(self):
        super().__init__()
        self.steps = nn.Embedding(10, 8)
        self.input, self.output = nn.Linear(2, 8), nn.Linear(8, 1)

    def forward(self, x, step_index):
        assert step_index.shape == x.shape[:1]
        return self.output((self.input(x) + self.steps(step_index)).relu())
'''
FLOW = ("noise.path=flow", "model.prediction=flow")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user's, in the working folder."""
    name = f"nets_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_a_flow_of_ones_own_from_a_file_is_tuned_resumed_and_sampled(
    own: str, tmp_path: Path, tiny_settings: tuple[str, ...]
):
    module = __import__(own)
    torch.manual_seed(1)
    source = module.net()
    save_file(source.state_dict(), tmp_path / "net.safetensors")
    torch.save(source.state_dict(), tmp_path / "net.pt")
    settings = (*tiny_settings, *FLOW, f"model.factory={own}:net")
    words = ["train", "swiss_roll", *settings, "model.weights=net.pt", "--out", "run"]
    assert main(words) == 0
    before = json.loads(Path("run/summary.json").read_text())["policy_sha256"]
    assert main([*words, "training.num_iterations=4", "--resume"]) == 0
    assert json.loads(Path("run/summary.json").read_text())["policy_sha256"] != before
    assert main(["sample", "run", "--num", "5", "--out", "points.npy"]) == 0
    assert main(["export", "run", "--out", "program"]) == 0
    assert f"| base model | {own}:net |" in Path("program/README.md").read_text()
    program = torch.export.load("program/sampler.pt2").module()
    assert program(noise=torch.randn(3, 5, 2)).shape == (3, 2)
    x, t = torch.randn(4, 2), torch.tensor([1.0, 30.0, 500.0, 1000.0])
    for file in ("net.safetensors", "net.pt"):
        config = load_config("swiss_roll", [*settings, f"model.weights={file}"])
        network, there = full_step_network(*resolve(config))
        assert there
        assert torch.equal(network(x, t), source(x, t))


def test_one_that_its_function_trained_and_one_that_is_trained_here(
    own: str, tiny_settings: tuple[str, ...]
):
    module = __import__(own)
    settings = (*tiny_settings, *FLOW, f"model.factory={own}:trained")
    x, t = torch.randn(4, 2), torch.full((4,), 500.0)
    network, there = full_step_network(
        *resolve(load_config("swiss_roll", [*settings, "model.weights=factory"]))
    )
    assert there
    assert torch.equal(network(x, t), module.trained()(x, t))
    resolved = resolve(load_config("swiss_roll", settings))
    here, there = full_step_network(*resolved)
    assert not there
    assert not torch.equal(here(x, t), network(x, t))
    again, there = full_step_network(*resolved)
    assert there
    assert torch.equal(here(x, t), again(x, t))


def test_memory_is_counted_of_networks_of_pictures_that_look_at_numbers(
    own: str, tiny_digits: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    made = (f"model.factory={own}:of_pictures", f"critic.factory={own}:critic_of_pictures")
    words = ["train", "digits", *tiny_digits, *made, "critic.regulariser=none"]
    assert main([*words, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "parameters, policy" in told
    assert "activations of a policy step" in told
    assert main([*words, "--out", "run"]) == 0
    assert Path("run/summary.json").is_file()


def test_a_critic_a_value_and_data_of_ones_own_are_trained_with_and_resumed(
    own: str, tiny_settings: tuple[str, ...]
):
    made = {"critic": "critic", "value": "Value", "data": "points"}
    factories = [f"{section}.factory={own}:{name}" for section, name in made.items()]
    check_resumes(load_config("swiss_roll", [*tiny_settings, *factories, "sft_pg.baseline=value"]))
    config, data = resolve(load_config("swiss_roll", [*tiny_settings, *factories]))
    assert len(data.train) == 160  # a fifth is held out
    assert data.units.samples.scale[1] > 4 * data.units.samples.scale[0]
    networks = networks_of(config, network_of(config))
    x, steps = torch.randn(3, 4, 2), torch.arange(3)[:, None]
    assert networks.value(x, steps).shape == (3, 4, 1)
    assert networks.critic(x[0, :1]).shape == (1,)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("model.factory=NAME:nothing",), "has no 'nothing'"),
        (("model.factory=NAME",), "expected module:function"),
        (("model.factory=NAME:broken",), r"broken\(\) failed: RuntimeError: no such disk"),
        (("model.factory=NAME:number",), r"number\(\) returned a int, expected a torch.nn.Module"),
        (("model.factory=NAME:wide",), r"returned \(2, 3\), expected \(2, 2\)"),
        (("model.factory=NAME:net", "model.weights=none.pt"), "model.weights: no file at"),
        (("model.factory=NAME:net", "model.weights=bad.pt"), "model.weights: cannot read"),
        (("model.factory=NAME:net", "model.weights=other.pt"), "does not fit the network"),
        (("model.factory=NAME:net", "pretrained.path=x"), "are two models; leave one out"),
        (("model.weights=other.pt",), "model.weights: goes with model.factory"),
        (("model.factory=NAME:by_class", "model.classes=2"), "labels"),
        (("noise.path=ve",), "model.prediction=edm"),
        (
            ("critic.factory=NAME:net",),
            r"critic.factory: .* with \(2, 2\) failed: TypeError",
        ),
        (
            ("value.factory=NAME:net",),
            r"\(\[2, 2\]\), expected \(2,\) or \(2, 1\)",
        ),
        (("value.factory=Value",), "value.factory: expected module:function"),
        (("critic.factory=NAME:critic", "critic.objective=mmd"), "takes no network"),
        (
            ("critic.num_networks=2", "critic.objective=mmd"),
            "num_networks: critic.objective=mmd has",
        ),
        (("critic.factory=NAME:critic", "critic.regulariser=spectral_norm"), "spectral_norm"),
        (("data.factory=NAME:number",), r"data.factory: .*:number\(\)"),
        (("data.factory=NAME:points", "data.path=x.npy"), "data.path: data.name=memory reads no"),
    ],
)
def test_what_cannot_work_is_one_line(own, tmp_path, tiny_settings, settings, words):
    (tmp_path / "bad.pt").write_bytes(b"no state")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    given = [setting.replace("NAME", own) for setting in settings]
    with pytest.raises(UserError, match=words) as error:
        full_step_network(*resolve(load_config("swiss_roll", [*tiny_settings, *given])))
    assert "\n" not in str(error.value)
