"""Latents drawn, and their pictures scored with the metadata of prompts, in processes of a Ray."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from tiny_pipelines import PROMPTS
from users_ray import UsersRay

from sft_rl.cli import main
from sft_rl.config.files import load_config
from sft_rl.runs.parts import objective_of
from sft_rl.runs.resolve import resolve

USE = "tests.text.shades:darkest_asked_for"


@pytest.fixture
def own(settings: list[str], tmp_path: Path) -> list[str]:
    rows = [f"{prompt},{i},{len(prompt)}\n" for i, prompt in enumerate(PROMPTS)]
    (tmp_path / "prompts.csv").write_text("".join(["prompt,channel,length\n", *rows]))
    table = [f"prompts.path={tmp_path / 'prompts.csv'}", "prompts.metadata=[channel,length]"]
    scored = ["reward.num_scored=6", "metrics.full_step=off", "algorithm=grpo"]
    scored += ["rollout.group_size=3"]
    return [*settings, *table, *scored]


def test_what_is_sent_to_a_scorer_scores_as_here(own: list[str]):
    config, data = resolve(
        load_config("images", [*own, f"reward.terms=[critic, {{use: '{USE}'}}]"])
    )
    here = objective_of(config).rewards[0].score
    more = f"reward.terms=[critic, {{use: '{USE}', num_scorers: 1}}]"
    elsewhere, _ = resolve(load_config("images", [*own, more]))
    sent: list[bytes] = []
    objective_of(elsewhere, remote=lambda _, make: sent.append(pickle.dumps(make)) or torch.zeros)
    labels = torch.tensor([0, 1, 2, 1])
    scores = here(data.latents[:4], labels)
    arrived = pickle.loads(sent[0])(device="cpu")  # noqa: S301 (our own)
    assert torch.equal(arrived(data.latents[:4], labels), scores)
    assert len(scores.unique()) > 2


@pytest.mark.ray
@pytest.mark.slow  # its processes import diffusers and transformers
def test_workers_and_scorers_give_the_same_policy(
    own: list[str], tmp_path: Path, in_users_ray: UsersRay
):
    own += ["rollout.shards_per_batch=2", "rollout.num_cpus_per_worker=0.1"]
    hashes = []
    for name, workers, scorers in (("here", 0, ""), ("ray", 2, ", num_scorers: 2")):
        term = f"use: '{USE}', batch_size: 3, num_cpus_per_scorer: 0.1{scorers}"
        run = ["train", "images", *own, f"reward.terms=[critic, {{{term}}}]", "--out"]
        run += [str(tmp_path / name), f"rollout.num_workers={workers}"]
        if workers:
            in_users_ray("sft-rl", *run)
        else:
            assert main(run) == 0
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        hashes.append([summary["policy_sha256"], summary["final"]["term_darkest_asked_for"]])
    assert hashes[0] == hashes[1]
