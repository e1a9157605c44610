"""Rollouts that overlap learning: versions old, and still the same numbers everywhere."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from processes import MORTAL, PROCESSES, interrupt

from sft_rl.cli import main
from sft_rl.config import ResolvedConfig
from sft_rl.config.files import load_config
from sft_rl.errors import UserError
from sft_rl.jobs.build import build_runner
from sft_rl.learning.monitors import staleness
from sft_rl.policy import to_arrays
from sft_rl.runs.checks import check_settings
from sft_rl.runs.parts import network_of, networks_of

pytestmark = PROCESSES

OVERLAP = (
    MORTAL,
    "training.max_offpolicy_steps=3",
    "training.num_iterations=40",
    "training.eval_every=20",
)


def run(out: Path, *settings: str) -> str:
    assert main(["train", "swiss_roll", *settings, "--out", str(out)]) == 0
    return policy_sha256(out)


@pytest.fixture(scope="module")
def settings(tiny_settings: tuple[str, ...]) -> tuple[str, ...]:
    return (*tiny_settings, *OVERLAP, "training.checkpoint_every=7")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, settings: tuple[str, ...]) -> Path:
    out = tmp_path_factory.mktemp("overlap") / "run"
    run(out, *settings)
    return out


def policy_sha256(out: Path) -> str:
    return str(json.loads((out / "summary.json").read_text())["policy_sha256"])


def test_it_is_another_algorithm_than_strictly_on_policy(
    tmp_path: Path, settings: tuple[str, ...], undisturbed: Path
):
    on_policy = run(tmp_path / "run", *settings, "training.max_offpolicy_steps=0")
    assert on_policy != policy_sha256(undisturbed)


def test_the_ratio_corrects_for_weights_three_versions_old(undisturbed: Path):
    rows = pd.read_csv(undisturbed / "metrics.csv")
    # Iteration 0 has no version before its own; the next look back one update, two, then three.
    assert rows["first_ratio_deviation"].iloc[0] < 1e-4
    assert rows["first_ratio_deviation"].iloc[1:].max() > 1e-3
    chain = rows["effective_share_chain"]
    assert chain.iloc[0] == pytest.approx(1.0, abs=1e-6)
    assert chain.iloc[0] > chain.iloc[1] > chain.iloc[2] > chain.iloc[3]
    assert (rows["log_chi2_chain"].iloc[1:] > 0).any()


def test_effective_shares_and_chi2_in_closed_form(tiny_config: Callable[..., ResolvedConfig]):
    config = tiny_config()
    networks = networks_of(config, network_of(config))
    runner = build_runner(config)
    runner.load(0, to_arrays(networks.policy))
    drawn = runner.collect(iteration=0, shard=0)
    steps, latents = torch.arange(4)[:, None], drawn.latents
    log_probs = networks.policy.log_prob(latents[:-1], latents[1:], steps).detach()
    ratios = torch.rand(log_probs.shape, generator=torch.Generator().manual_seed(0)) + 0.1
    old = replace(drawn, log_probs=log_probs - ratios.log())
    found = staleness(old, networks)
    for name, r in {**dict(enumerate(ratios)), "chain": ratios.prod(dim=0)}.items():
        share = r.sum() ** 2 / (len(r) * r.square().sum())
        assert found[f"effective_share_{name}"] == pytest.approx(share.item(), rel=1e-3)
    chi2 = ratios.prod(dim=0).square().mean() - 1
    assert found["log_chi2_chain"] == pytest.approx(chi2.log1p().item(), rel=1e-3)


@pytest.mark.parametrize("algorithm", ["hybrid", "pathwise", "nft"])
def test_what_no_ratio_weighs_is_one_version_old_at_most(algorithm: str):
    settings = (f"algorithm={algorithm}", "training.max_offpolicy_steps=2")
    with pytest.raises(UserError, match=r"training.max_offpolicy_steps: .* got 2; take 0 or 1"):
        check_settings(load_config("swiss_roll", settings))


def test_a_killed_run_goes_on_with_what_was_on_its_way(
    tmp_path: Path, settings: tuple[str, ...], undisturbed: Path
):
    out = tmp_path / "run"
    command = ("train", "swiss_roll", *settings, "--out", str(out))
    code, _ = interrupt(*command, said=tmp_path, number=signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (out / "summary.json").exists()
    assert run(out, *settings, "--resume") == policy_sha256(undisturbed)
    assert pd.read_csv(out / "metrics.csv")["iteration"].tolist() == list(range(1, 41))
