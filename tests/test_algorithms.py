"""Advantages in closed form; PPO's clip; pathwise against the chain it walks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sft_rl.algorithms.advantages import generalised_advantages, normalised
from sft_rl.algorithms.pathwise import Chain, walk
from sft_rl.cli import main
from sft_rl.config import Config, ResolvedConfig
from sft_rl.errors import UserError
from sft_rl.runs.parts import algorithm_of, network_of, networks_of
from sft_rl.types import Transitions


def test_gae_in_closed_form():
    values = torch.tensor([[1.0], [3.0], [2.0]])
    scores = torch.tensor([5.0])
    lam = 0.5
    deltas = [3.0 - 1.0, 2.0 - 3.0, 5.0 - 2.0]
    expected = [deltas[0] + lam * (deltas[1] + lam * deltas[2]), deltas[1] + lam * deltas[2], 3.0]
    found = generalised_advantages(scores, values, gae_lambda=lam)
    torch.testing.assert_close(found[:, 0], torch.tensor(expected))
    paper = generalised_advantages(scores, values, gae_lambda=1.0)
    torch.testing.assert_close(paper, scores - values)


def test_normalisation_by_step_and_by_batch():
    advantages = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    advantages = advantages * torch.tensor([[1.0], [5.0], [0.1], [2.0]]) + 3.0
    by_step = normalised(advantages, "step")
    torch.testing.assert_close(by_step.mean(1), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(by_step.std(1), torch.ones(4))
    by_batch = normalised(advantages, "batch")
    assert by_batch.std().item() == pytest.approx(1.0)
    torch.testing.assert_close(by_batch / advantages, (1 / advantages.std()).expand(4, 1000))
    assert normalised(advantages, "none") is advantages


def test_ppo_has_no_gradient_beyond_the_clip(tiny_config: Callable[..., ResolvedConfig]):
    """Where the ratio has left the range in the advantage's direction, nothing is to be won."""
    config = tiny_config("algorithm=ppo")
    networks = networks_of(config, network_of(config))
    generator = torch.Generator().manual_seed(0)
    latents, actions = torch.randn(2, 6, 2, generator=generator)
    index = torch.zeros(6, dtype=torch.int64)
    log_probs = networks.policy.log_prob(latents, actions, index).detach()
    for advantage, log_ratio, moves in ((1.0, 0.5, False), (1.0, -0.5, True), (-1.0, 0.5, True)):
        batch = Transitions(
            latents, actions, index, log_probs - log_ratio, torch.full((6,), advantage)
        )
        loss = algorithm_of(config).loss(batch, networks)
        networks.policy.zero_grad()
        loss.value.backward()
        total = sum(p.grad.abs().sum() for p in networks.policy.network.parameters())
        assert bool(total > 0) is moves
        assert loss.metrics["clip_fraction"] == 1.0


def test_ppo_stops_at_the_target_kl(tiny_config: Callable[..., ResolvedConfig]):
    update = algorithm_of(tiny_config("algorithm=ppo", "ppo.target_kl=0.01"))
    assert update.should_stop({"approx_kl": 0.02})
    assert not update.should_stop({"approx_kl": 0.005})
    assert not algorithm_of(tiny_config("algorithm=ppo", "ppo.target_kl=null")).should_stop(
        {"approx_kl": 9.0}
    )


@pytest.mark.parametrize("num_last", [1, 4])
def test_the_walk_is_the_chain_and_checkpointing_changes_nothing(
    tiny_config: Callable[..., ResolvedConfig], num_last: int
):
    config = tiny_config()
    policy = networks_of(config, network_of(config)).policy
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(8, 2, generator=generator)
    noise = torch.randn(num_last, 8, 2, generator=generator)
    x = start
    for i in range(num_last):
        x, *_ = policy.act(x, torch.tensor(policy.num_steps - num_last + i), noise[i])
    grads = []
    for checkpointed in (False, True):
        policy.zero_grad()
        final = walk(policy, Chain(start, noise), checkpointed=checkpointed)
        torch.testing.assert_close(final, x)
        final.square().sum().backward()
        grads.append([p.grad.clone() for p in policy.network.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


def test_names_are_checked():
    with pytest.raises(UserError, match="did you mean 'ppo'"):
        algorithm_of(Config(algorithm="ppoo"))
    with pytest.raises(UserError, match="cannot import 'no_such_module'"):
        algorithm_of(Config(algorithm="no_such_module:X"))
    with pytest.raises(UserError, match="has no 'Nothing'"):
        algorithm_of(Config(algorithm="sft_rl.config:Nothing"))
    with pytest.raises(UserError, match="not a subclass"):
        algorithm_of(Config(algorithm="sft_rl.config:Config"))


def test_the_example_of_an_own_algorithm_trains(
    tmp_path: Path, tiny_settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    """As its page says, from the repository's root."""
    monkeypatch.chdir(Path(__file__).parent.parent)
    own = "algorithm=examples.batch_baseline:BatchBaseline"
    assert main(["train", "swiss_roll", *tiny_settings, own, "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "summary.json").is_file()
