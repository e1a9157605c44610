"""A checkpoint is whole or it is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sft_rl.config import ResolvedConfig
from sft_rl.errors import UserError
from sft_rl.runs.folder import RunFolder
from sft_rl.storage.checkpoint import Checkpoint, DamagedCheckpoint, load, save

CHECKPOINT = Checkpoint(
    {"policy": {"a": torch.randn(5, 3), "b": torch.arange(4)}, "empty": {}},
    {"iteration": 3, "nested": {"x": [1.5, None]}},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "000003", CHECKPOINT)
    return tmp_path / "000003"


def test_round_trip(folder: Path):
    loaded = load(folder)
    assert loaded.meta == CHECKPOINT.meta
    assert loaded.tensors.keys() == CHECKPOINT.tensors.keys()
    for name, tensor in CHECKPOINT.tensors["policy"].items():
        assert torch.equal(loaded.tensors["policy"][name], tensor)
    assert [path.name for path in folder.parent.iterdir()] == ["000003"]


def test_saving_again_replaces_the_whole(folder: Path):
    save(folder, Checkpoint({"other": {"c": torch.zeros(1)}}, {}))
    assert load(folder).tensors.keys() == {"other"}
    assert [path.name for path in folder.parent.iterdir()] == ["000003"]


def damaged(folder: Path, file: Path, content: bytes) -> None:
    whole = file.read_bytes()
    file.write_bytes(content)
    with pytest.raises(DamagedCheckpoint):
        load(folder)
    file.write_bytes(whole)


def test_every_truncation_is_found(folder: Path):
    for file in folder.iterdir():
        content = file.read_bytes()
        for i in range(20):
            damaged(folder, file, content[: len(content) * i // 20])


def test_every_flipped_bit_is_found(folder: Path):
    generator = torch.Generator().manual_seed(0)
    for file in folder.iterdir():
        content = file.read_bytes()
        for position in torch.randint(len(content) * 8, (200,), generator=generator).tolist():
            flipped = bytearray(content)
            flipped[position // 8] ^= 1 << position % 8
            damaged(folder, file, bytes(flipped))


def test_missing_foreign_and_mixed_up_files_are_found(folder: Path, tmp_path: Path):
    (folder / "foreign.bin").write_bytes(b"x")
    with pytest.raises(DamagedCheckpoint, match="foreign"):
        load(folder)
    (folder / "foreign.bin").unlink()
    other = tmp_path / "000004"
    save(other, Checkpoint({"policy": {"a": torch.zeros(5, 3)}, "empty": {}}, {}))
    shutil.copy(other / "policy.safetensors", folder / "policy.safetensors")
    with pytest.raises(DamagedCheckpoint, match="SHA-256"):
        load(folder)
    (folder / "policy.safetensors").unlink()
    with pytest.raises(DamagedCheckpoint, match="policy"):
        load(folder)


def test_a_checkpoint_from_before_a_setting_existed_has_its_default(
    tmp_path: Path, tiny_config: Callable[..., ResolvedConfig]
):
    store = RunFolder.create(tmp_path / "run", tiny_config())
    older = store.config.model_dump(mode="json")
    del older["model"]["compile"]
    save(store.path / "checkpoints" / "000003", Checkpoint({}, {"config": older, "iteration": 3}))
    assert store.latest().meta["config"] == older
    older["model"]["width"] += 1
    save(store.path / "checkpoints" / "000003", Checkpoint({}, {"config": older, "iteration": 3}))
    with pytest.raises(UserError, match=r"of another configuration: model\.width was"):
        store.latest()
