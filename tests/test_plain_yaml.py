"""Settings as people write them: values by their field, and nothing that YAML does beyond that."""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_rl.cli import main
from sft_rl.config import Config
from sft_rl.config.files import load_config, load_config_file, lookup, preset_names
from sft_rl.config.paths import with_absolute_paths
from sft_rl.config.plain_yaml import read_file, read_text
from sft_rl.errors import UserError


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("seed=010", 10),
        ("seed=1e3", 1000),
        ("seed=1_000", 1000),
        ("data.path=data #1/p.npy", "data #1/p.npy"),
        ("data.path=a: b.npy", "a: b.npy"),
        ("data.path=2024", "2024"),
        ("data.path=010", "010"),
        ("data.path=2020-13-45", "2020-13-45"),
        ("data.path=!!int x", "!!int x"),
        ("data.path=*x", "*x"),
        ("data.path='quoted # path'", "quoted # path"),
        ('data.path="\\ud83d\\ude00"', "\N{GRINNING FACE}"),
        ("description=yes", "yes"),
        ("description=null", "null"),
        ("sampler.start_time=null", None),
        ("data.flip=yes", True),
        ("data.flip=off", False),
        ("policy.learning_rate=1e-3", 0.001),
        ("policy.learning_rate=.5", 0.5),
        ("policy.adam_betas=[0.5, 9e-1]", (0.5, 0.9)),
        ("value.widths=[8, 016]", (8, 16)),
        (
            'model.unet={"a": [1, 2.5, true, null, x], b: 1e-3}',
            {"a": [1, 2.5, True, None, "x"], "b": 1e-3},
        ),
        ("model.unet.act_fn=silu", "silu"),
        ("model.unet.layers_per_block=02", 2),
    ],
)
def test_a_value_is_what_its_field_says(setting: str, value: Any):
    config = load_config("swiss_roll", [setting])
    assert lookup(config, setting.partition("=")[0]) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=true"], "seed: expected a number, got True"),
        (["data.channels=true"], "data.channels: expected a number, got True"),
        (["policy.adam_betas=[true, 0.5]"], "policy.adam_betas: expected a number"),
        (["policy.adam_betas=[0.9, 1]"], "policy.adam_betas: .*less than 1"),
        (["seed=0x10"], "seed: .*integer.*got '0x10'"),
        (["seed=1:30"], "seed: .*got '1:30'"),
        (["seed=2020-13-45"], "seed: .*got '2020-13-45'"),
        (["seed=!!int 5"], "seed: .*got '!!int 5'"),
        ([f"seed={'9' * 5000}"], r"seed: .*got '9{59}… \(5002 characters\)"),
        (["seed="], "seed: .*got ''"),
        (["options=1", "options.a=2"], "options.a: options is set to 1, too; give one"),
        (["model.unet=5", "model.unet.x=1"], "model.unet.x: model.unet is set to 5, too"),
        (["model.unet.=1"], "model.unet.: unknown setting"),
        (["model.unet=5"], "model.unet: .*dictionary, got 5"),
        (["model.unet={a: &x 1}"], "model.unet: cannot read .*anchors"),
        (["model.unet={a: !!set {b}}"], r"model.unet: cannot read .*tags \(!set\)"),
        (["model.unet={a: 1, a: 2}"], "'a' is there twice"),
        (["model.unet={[a]: 2}"], "a key must be a word"),
        ([f"model.unet={'[' * 5000}"], "nested deeper than 16"),
        ([f"model.unet={'[' * 17}1{']' * 17}"], "nested deeper than 16"),
        ([f"description={'x' * 300_000}"], "longer than 262144"),
        (["learner.num_threads=1000000000000"], "learner.num_threads: .*1024"),
        (["metrics.num_samples=1000000000000"], "metrics.num_samples: .*1000000000"),
    ],
    ids=range(23),
)
def test_what_is_no_value_is_one_line(words: list[str], message: str):
    with pytest.raises(UserError, match=message) as error:
        load_config("swiss_roll", words)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("reward=os:sep", "reward: 'sep' cannot be called, got '/'"),
        ("algorithm=:b", "algorithm: got ':b'; allowed: module:name"),
        ("algorithm=a.:b", "algorithm: got 'a.:b'"),
        ("device=meta", "device: 'meta' is unknown"),
        ("device=mps", "device: 'mps' is unknown"),
        ("device=vulkan", "device: 'vulkan' is unknown"),
        ("device=cpu:7", "device: 'cpu:7' is unknown"),
    ],
)
def test_what_names_nothing_is_refused_before_a_folder_is_made(
    setting: str,
    message: str,
    tmp_path: Path,
    tiny_settings: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
):
    out = tmp_path / "run"
    assert main(["train", "swiss_roll", *tiny_settings, setting, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_missing_path_asks_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").mkdir()

    def path_of(given: str) -> str | None:
        config = load_config("digits", [f"pretrained.path={given}"])
        return with_absolute_paths(config).pretrained.path

    assert path_of("hub:owner/name") == path_of("owner/name") == "owner/name"
    assert path_of("models/x") == f"{tmp_path}/models/x"
    assert path_of("~/x") == f"{tmp_path}/x"
    assert path_of("~/x/y") == f"{tmp_path}/x/y"
    assert path_of("./owner/name") == f"{tmp_path}/owner/name"
    for path, message in (
        ("hub:name", "allowed: hub:owner/name"),
        ("hub:~/x", "allowed: hub:owner/name"),
        ("~nobody-of-that-name/x", "nobody has such a home"),
    ):
        with pytest.raises(UserError, match=message):
            path_of(path)
    (tmp_path / "models" / "x").mkdir()
    with pytest.raises(UserError, match="is on this machine, too"):
        path_of("hub:models/x")


BOMB = "\n".join(
    [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'lol'}]" for i in range(9)]
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB.encode(), "anchors and aliases"),
        (b"seed: !!int x", "tags"),
        (b"seed: !!timestamp foo", "tags"),
        (b"seed: !!python/object/apply:os.system [x]", "tags"),
        (b"!!set {a, b}", "tags"),
        ("seed: 1".encode("utf-16"), "not UTF-8 text, at byte 0"),
        ("description: é".encode("latin-1"), "not UTF-8 text, at byte 13"),
        (b"seed: 1\x00", "not valid YAML"),
        (b"seed: [1", "not valid YAML at line 1, column 9"),
        (b"seed: 1\nseed: 2", "'seed' is there twice"),
        (b"seed: 1\n---\nseed: 2", "several YAML documents"),
        (b"[" * 100_000, "nested deeper"),
        (b"- " * 100_000, "nested deeper"),
        (b"#" * 300_000, "larger than 256 KiB"),
        (b"", "holds no settings"),
        (b"[1]", "holds no settings"),
        (b"seed: {a: 1}", "seed: .*integer"),
        (b"data: 3", "data: .*dictionary"),
        (b'seed: "\\UFFFFFFFF"', "not valid YAML"),
    ],
    ids=range(19),
)
def test_a_file_of_anything_else_is_one_line(content: bytes, message: str, tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load_config_file(str(file))
    assert "\n" not in str(error.value)


def test_a_setting_does_not_hide_that_its_section_is_none(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("data: 3")
    with pytest.raises(UserError, match="data: expected keys and values, got 3"):
        load_config_file(str(tmp_path / "a.yaml"), ["data.num_points=500"])


def test_only_regular_files_are_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/null"):
        with pytest.raises(UserError, match="no regular file"):
            load_config_file(str(path))
    for path in (tmp_path, tmp_path / "none", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot read"):
            load_config_file(str(path))


@pytest.mark.parametrize("preset", preset_names())
def test_the_presets_are_what_yaml_says(preset: str):
    """Our files mean the same to everybody's YAML."""
    from sft_rl.config.files import PRESETS

    text = (PRESETS / f"{preset}.yaml").read_text()
    theirs = yaml.safe_load(text)
    assert _numbers(read_text(text, Config)) == _numbers(theirs)


def _numbers(tree: Any) -> Any:
    """YAML 1.1 takes 1e-3 for text."""
    if isinstance(tree, dict):
        return {key: _numbers(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_numbers(value) for value in tree]
    if isinstance(tree, str):
        try:
            return float(tree)
        except ValueError:
            return tree
    return tree


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(TREES)
def test_what_is_dumped_is_read_back(tree: Any):
    """Everything that a run writes as YAML means the same when it is read."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.yaml"
        file.write_text(yaml.safe_dump(tree))
        assert read_file(file) == tree
    assert read_text(yaml.safe_dump(tree)) == tree


def test_each_path_of_a_section_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    paths = [
        "metrics.dinov2_path=a",
        "metrics.inception_path=~/b",
        "data.path=c",
        "data.name=images",
    ]
    config = with_absolute_paths(load_config("digits", paths))
    assert config.metrics.dinov2_path == f"{tmp_path}/a"
    assert config.metrics.inception_path == f"{tmp_path}/home/b"
    assert config.data.path == f"{tmp_path}/c"
