"""A whole run on images, from the command line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sft_rl.cli import main
from sft_rl.jobs.report import final_table

NOT_MEASURED = {"nfe", "noise_floor", "noise_floors"}


def test_a_run_on_digits_leaves_everything(digits_run: Path):
    summary = json.loads((digits_run / "summary.json").read_text())
    for part in ("initial", "final", "full_step"):
        assert np.isfinite(summary[f"frechet_inf_{part}"])
    distances = ("frechet", "frechet_inf", "kernel")
    measured = (*distances, "precision", "recall")
    expected = {"nearest_training", *measured, *(f"{name}_se" for name in measured)}
    floors = summary["full_step"]["noise_floors"]
    assert floors.keys() == expected == summary["full_step"].keys() - NOT_MEASURED
    less = {f"{name}_less_full_step{kind}" for name in distances for kind in ("", "_se")}
    for part in ("before", "final"):
        own = {name.replace("full_step", "before") for name in less if part == "final"}
        assert summary[part].keys() == expected | less | own
        for name in distances:
            difference = summary[part][name] - summary["full_step"][name]
            assert summary[part][f"{name}_less_full_step"] == pytest.approx(difference)
            assert summary[part][f"{name}_less_full_step_se"] > 0.0
    assert summary["protocol"]["num_samples"] == 60
    assert summary["protocol"]["reference"] == "held-out digits"
    metrics = pd.read_csv(digits_run / "metrics.csv")
    for name in ("frechet_inf", "frechet_inf_se"):
        assert metrics[name].notna().tolist() == [False, True, True]
    plots = digits_run / "plots"
    assert {p.name for p in plots.iterdir()} == {"curves.png", "path.png", "samples.png"}
    # four panels: data, before, after, all steps
    assert Image.open(plots / "samples.png").width > 3.5 * Image.open(plots / "samples.png").height


def test_samples_are_whole_pixels_and_repeatable(digits_run: Path, tmp_path: Path):
    for name in ("a.npy", "b.npy", "grid.png"):
        out = str(tmp_path / name)
        assert main(["sample", str(digits_run), "--num", "9", "--out", out]) == 0
    samples = np.load(tmp_path / "a.npy")
    assert samples.shape == (9, 1, 8, 8)
    assert samples.dtype == np.uint8
    assert samples.max() <= 16
    assert np.array_equal(samples, np.load(tmp_path / "b.npy"))
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (26, 26, 3)  # a line between images
    assert grid[:8, :8, 0].tolist() == (samples[0, 0].astype(int) * 255 // 16).tolist()


def test_the_row_of_many_steps_has_as_many_as_asked_for_or_is_left_out(
    tmp_path: Path, tiny_digits: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    for num in (7, "off"):
        out, steps = tmp_path / f"run-{num}", f"metrics.full_step={num}"
        command = ["train", "digits", *tiny_digits, "training.num_iterations=1", steps]
        assert main([*command, "--out", str(out)]) == 0
        text, summary = capsys.readouterr().out, json.loads((out / "summary.json").read_text())
        assert ("full-step sampler 7/7" in text) == (num == 7)
        assert ("7 steps" in final_table(summary)[""]) == (num == 7)
        assert summary["noise_floor"] == summary["full_step"]["noise_floors"]["frechet_inf"]
        less = [name for name in summary["final"] if "_less_full_step" in name]
        assert bool(less) == ("frechet_inf_full_step" in summary) == (num == 7)
        assert main(["export", str(out), "--out", str(tmp_path / f"export-{num}")]) == 0
        assert ("7 steps |" in (tmp_path / f"export-{num}" / "README.md").read_text()) == (num == 7)


@pytest.mark.parametrize(
    "algorithm", ["sft_pg", pytest.param("ppo", marks=pytest.mark.slow), "hybrid"]
)
def test_every_algorithm_runs_on_images(
    tmp_path: Path, tiny_digits: tuple[str, ...], algorithm: str
):
    settings = [f"algorithm={algorithm}", "training.num_iterations=1"]
    out = ["--out", str(tmp_path / "run")]
    assert main(["train", "digits", *tiny_digits, *settings, *out]) == 0


def test_evaluate_repeats_the_summary(digits_run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", str(digits_run)]) == 0
    final = json.loads((digits_run / "summary.json").read_text())["frechet_inf_final"]
    assert f"{final:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["critic.kind=mlp"], "critic.kind: an MLP takes points"),
        (["model.kind=mlp"], "model.kind: an MLP takes points"),
        (["value.kind=mlp", "algorithm=sft_pg"], "value.kind: an MLP takes points"),
        (["data.name=images"], "data.path"),
        (["data.name=cifar10", "data.path=nowhere"], "data_batch_1.bin"),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_starts(
    settings: list[str],
    words: str,
    tiny_digits: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits", *tiny_digits, *settings, "--out", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_where_real_images_are_too_few_the_biased_distance_has_no_floor(
    tiny_digits: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Nor is the floor of another leading metric taken from the cache."""
    few = ("metrics.num_samples=1100", "metrics.full_step=3")  # of 1,079 training images
    settings = [*tiny_digits, *few, "training.num_iterations=1"]
    found = {}
    for name in ("frechet", "frechet_inf"):
        out = tmp_path / name
        leads = f"metrics.distance={name}"
        assert main(["train", "digits", *settings, leads, "--out", str(out)]) == 0
        found[name] = json.loads((out / "summary.json").read_text())["noise_floor"]
        assert main(["export", str(out), "--out", str(tmp_path / f"{name}-pipeline")]) == 0
    assert found["frechet"] is None
    assert abs(found["frechet_inf"]) < 0.5
    assert "not measured" in (tmp_path / "frechet-pipeline" / "README.md").read_text()
    capsys.readouterr()
    assert main(["pretrain", "digits", *settings, "metrics.distance=frechet"]) == 0
    assert "noise floor" in capsys.readouterr().out
