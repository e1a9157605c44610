"""torch.compile changes the speed of calls and nothing else."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sft_rl.algorithms import Networks
from sft_rl.config import ResolvedConfig
from sft_rl.errors import UserError
from sft_rl.runs.parts import network_of, networks_of
from sft_rl.storage.checkpoint import parameters_sha256


def gradients(networks: Networks) -> list[Tensor]:
    """Draw a step as a rollout does, score it, and step the critic with its penalty."""
    source = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 16, 2, generator=source)
    k = torch.tensor(1)
    with torch.inference_mode():
        action, log_prob, _ = networks.policy.act(x, k, noise)
    action = action.clone()
    networks.critic.loss(x, action, source).value.backward()
    rescored = networks.policy.log_prob(x, action, k)
    torch.testing.assert_close(rescored.detach(), log_prob)
    (rescored.mean() + networks.critic(networks.policy.mean(x, k)).mean()).backward()
    modules = (networks.critic, networks.policy)
    return [p.grad for m in modules for p in m.parameters() if p.grad is not None]


@pytest.mark.slow  # half a minute of compiling
def test_a_compiled_network_has_the_names_and_the_gradients_of_an_eager_one(
    tiny_config: Callable[..., ResolvedConfig],
):
    found = {}
    for name in ("false", "true"):
        config = tiny_config(f"model.compile={name}")
        torch.manual_seed(0)
        found[name] = networks_of(config, network_of(config))
    eager, compiled = found["false"], found["true"]
    for part in ("policy", "critic"):
        ours, theirs = getattr(compiled, part), getattr(eager, part)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        assert parameters_sha256(ours) == parameters_sha256(theirs)
    expected = gradients(eager)
    assert len(expected) > 10
    torch.testing.assert_close(gradients(compiled), expected, rtol=1e-4, atol=1e-6)
    for module in (compiled.policy.network, compiled.critic):
        assert module._compiled_call_impl is not None


def test_a_team_of_learners_is_refused(tiny_config: Callable[..., ResolvedConfig]):
    team = ("learner.launcher=ray_train", "learner.num_workers=2")
    with pytest.raises(UserError, match=r"model\.compile: goes with one learner"):
        tiny_config(*team, "model.compile=true")
