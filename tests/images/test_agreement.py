"""The reward that asks a classifier of the data for the class that was asked for."""

import csv
from pathlib import Path

import pytest
import torch

from sft_rl.cli import main
from sft_rl.config.files import load_config
from sft_rl.data.images import load_images
from sft_rl.metrics.agreement import LOWEST, SEED, Agreement
from sft_rl.metrics.classifier import cached_classifier

USE = "use: 'sft_rl.metrics.agreement:Agreement'"
BY_CLASS = "model.unet.num_class_embeds=10"


def test_right_labels_score_high_and_others_low_down_to_a_floor():
    data = load_images(load_config("digits").data)
    assert data.held_out is not None and data.held_out_labels is not None
    x, labels = data.units.to_model(torch.from_numpy(data.held_out)), data.held_out_labels
    reward = Agreement(data)
    right, wrong = reward(x, labels), reward(x, (labels + 1) % 10)
    assert right.mean() > -0.3
    assert wrong.median() == LOWEST
    own, measures = (cached_classifier(data, seed=seed)[0] for seed in (SEED, 0))
    assert torch.equal(right, own(x).log_softmax(1)[range(len(x)), labels].clamp_min(LOWEST))
    assert not torch.equal(own(x), measures(x)), "what learns by one is measured by another"


def test_a_run_learns_by_it_and_what_cannot_is_told(
    tmp_path: Path, tiny_digits: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    def train(preset: str, *settings: str) -> int:
        return main(["train", preset, *settings, "--out", str(tmp_path / "run")])

    terms = f"reward.terms=[critic, {{{USE}, weight: 0.5}}]"
    assert train("digits", *tiny_digits, BY_CLASS, terms) == 0
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(LOWEST <= float(row["term_Agreement"]) < 0.0 for row in rows[1:])
    capsys.readouterr()
    elsewhere = ("algorithm=sft_pg", f"reward.terms=[critic, {{{USE}, num_scorers: 1}}]")
    for settings, said in (
        (("two_moons", terms), "reads labelled images, which the data are not"),
        (("digits", *tiny_digits, terms), "needs labels, but the model is not conditional"),
        (("digits", *tiny_digits, BY_CLASS, *elsewhere), "wants the run's data, so it is scored"),
    ):
        assert train(*settings) == 2
        assert said in capsys.readouterr().err
