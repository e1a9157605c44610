"""An exported pipeline draws what the run's own sampler draws, here and without this package."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from sft_rl.cli import main
from sft_rl.config import Config
from sft_rl.export.few_step import FewStepScheduler
from sft_rl.export.few_step_pipeline import FewStepPipeline
from sft_rl.export.pipeline import to_pipeline
from sft_rl.policy import DenoisingPolicy
from sft_rl.runs.folder import RunFolder
from sft_rl.runs.parts import network_of, policy_of
from sft_rl.runs.resolve import resolve

NUM = 6
WITHOUT_US = """
import sys, numpy as np, torch
sys.modules["sft_rl"] = None  # importing it fails
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipeline.save_pretrained(sys.argv[1] + "-again")  # a copy of a copy
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1] + "-again", trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
images = pipeline(6, generator=torch.Generator().manual_seed(5), output_type="pt").images
np.save(sys.argv[2], images.numpy())
"""


def drawn(policy: DenoisingPolicy) -> np.ndarray:
    """The policy's samples as the pipeline returns them."""
    samples = policy.eval().sample(NUM, torch.Generator().manual_seed(5))
    return (samples / 2 + 0.5).clamp(0, 1).numpy()


def pipeline_images(pipeline: DiffusionPipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    source = torch.Generator().manual_seed(5)
    return pipeline(NUM, generator=source, output_type="pt").images.numpy()


def test_with_this_package_the_samples_are_equal_bit_for_bit(digits_run: Path, tmp_path: Path):
    out = tmp_path / "pipeline"
    assert main(["export", str(digits_run), "--out", str(out), "--no-code"]) == 0
    policy, _ = RunFolder.open(digits_run).result()
    pipeline = FewStepPipeline.from_pretrained(out)
    assert isinstance(pipeline.scheduler, FewStepScheduler)
    assert np.array_equal(pipeline_images(pipeline), drawn(policy))
    assert {p.suffix for p in (out / "unet").iterdir()} == {".json", ".safetensors"}


def test_without_this_package_too(digits_run: Path, tmp_path: Path):
    out, file = tmp_path / "pipeline", tmp_path / "images.npy"
    assert main(["export", str(digits_run), "--out", str(out)]) == 0
    policy, _ = RunFolder.open(digits_run).result()
    command = [sys.executable, "-c", WITHOUT_US, str(out), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(file), drawn(policy))


@pytest.mark.parametrize(
    ("path", "prediction", "clip"),
    [("vp", "v_prediction", None), ("vp", "epsilon", 0.8), ("flow", "flow", 1.0), ("ve", "edm", 1)],
)
def test_every_path_is_exported_bit_for_bit(tiny_unet, tmp_path, path, prediction, clip):
    model = {"kind": "unet", "unet": tiny_unet, "prediction": prediction, "clip_x0": clip}
    tree = {"data": {"name": "digits"}, "model": model, "sampler": {"num_steps": 3, "eta": 0.5}}
    networks = {"critic": {"kind": "conv"}, "value": {"kind": "conv"}, "noise": {"path": path}}
    tree["sampler"]["start_time"] = 900
    config, _ = resolve(Config.model_validate({**tree, **networks}))
    torch.manual_seed(0)
    policy = policy_of(config, network_of(config))
    to_pipeline(policy).save_pretrained(tmp_path / "saved")
    again = DiffusionPipeline.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert np.array_equal(pipeline_images(again), drawn(policy))
    with pytest.warns(UserWarning, match="num_inference_steps=50 is ignored"):
        again(2, [torch.Generator().manual_seed(seed) for seed in (1, 2)], num_inference_steps=50)
    again.to(torch.bfloat16)
    assert again(1, output_type="np").images.dtype == np.float32


def test_the_card_names_data_model_and_protocol(digits_run: Path, tmp_path: Path):
    out = tmp_path / "pipeline"
    assert main(["export", str(digits_run), "--out", str(out)]) == 0
    card = (out / "README.md").read_text()
    summary = json.loads((digits_run / "summary.json").read_text())
    for value in (
        "A 3-step sampler of digits",
        summary["base_sha256"],
        summary["policy_sha256"],
        f"{summary['frechet_inf_final']:.4f}",
        "num_samples 60",
        "| seed | 0 |",
    ):
        assert value in card


def test_the_scheduler_refuses_a_foreign_time():
    scheduler = FewStepScheduler([5.5, 0.0], [1.0, 1.0], [0.0, 0.0], [0.1, 0.0])
    x = torch.zeros(1, 1, 2, 2)
    assert torch.equal(scheduler.step(x, 0.0, x, return_dict=False)[0], x)
    with pytest.raises(ValueError, match="none of"):
        scheduler.step(x, 5, x)


def test_what_cannot_be_exported_is_one_line(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "there").mkdir()
    for run, words in ((digits_run, "exists already"), (tmp_path, "holds no run")):
        assert main(["export", str(run), "--out", str(tmp_path / "there")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
