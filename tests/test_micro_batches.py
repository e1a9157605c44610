"""Updates in micro-batches take the step of the whole batch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sft_rl.config import Config, ResolvedConfig
from sft_rl.config.files import load_config
from sft_rl.data import load_dataset
from sft_rl.errors import UserError
from sft_rl.jobs.build import build_runner
from sft_rl.learning.learner import Learner
from sft_rl.runs.parts import algorithm_of, learner_of, network_of, networks_of
from sft_rl.runs.resolve import resolve
from sft_rl.types import Trajectories

TinyConfig = Callable[..., ResolvedConfig]
LOOSE = ("policy.max_grad_norm=1e6", "sampler.learn_std=true", "ppo.target_kl=null")
CLASSES = "model.unet.num_class_embeds=10"
ONE_STEP = ("ppo.num_epochs=1", "ppo.num_minibatches=1", "ppo.kl_weight=0.1")


def gradients(module: nn.Module) -> list[Tensor]:
    """What the last step's gradients were; the optimiser leaves them in place."""
    return [p.grad for p in module.parameters() if p.grad is not None]


def learner_and_batch(config: ResolvedConfig) -> tuple[Learner, Trajectories]:
    """A new learner, and trajectories drawn with its weights."""
    data = load_dataset(config.data)
    networks = networks_of(config, network_of(config))
    learner = learner_of(config, networks, data)
    runner = build_runner(config)
    runner.load(0, learner.weights())
    batch = runner.collect(iteration=0, shard=0)
    return learner, batch


def update(config: ResolvedConfig) -> tuple[dict[str, list[Tensor]], dict[str, float]]:
    """Step critic, value and policy on one batch; return their gradients and the numbers."""
    torch.manual_seed(0)
    learner, batch = learner_and_batch(config)
    networks = learner.networks
    scores, metrics = learner.update_critic(batch.final, 0, 0, batch.labels)
    critic = gradients(networks.critic)
    metrics |= learner.update_value(batch, scores)
    value = gradients(networks.value)
    metrics |= learner.update_policy(batch, 0)
    grads = {"critic": critic, "value": value, "policy": gradients(networks.policy)}
    return {k: [g.clone() for g in v] for k, v in grads.items()}, metrics


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("swiss_roll", ("algorithm=sft_pg", "critic.regulariser=r1")),
        ("swiss_roll", ("algorithm=ppo", "critic.objective=hinge")),
        ("swiss_roll", ("algorithm=pathwise", "critic.objective=n2ce")),
        ("swiss_roll", ("algorithm=hybrid", "hybrid.num_last_steps=2")),
        ("swiss_roll", ("algorithm=pathwise", "critic.objective=mmd")),
        ("swiss_roll", ("algorithm=grpo", "rollout.group_size=4", "grpo.trust_region=1.0")),
        ("swiss_roll", ("algorithm=nft",)),
        ("digits", (CLASSES, "algorithm=ppo")),
        ("digits", (CLASSES, "algorithm=hybrid", "hybrid.num_last_steps=2")),
    ],
)
def test_the_gradient_is_that_of_the_whole_batch(
    tiny_settings: tuple[str, ...],
    tiny_digits: tuple[str, ...],
    preset: str,
    settings: tuple[str, ...],
):
    """Penalties and labels included; 7 divides neither samples nor transitions."""
    tiny = tiny_digits if preset == "digits" else tiny_settings
    common = (*tiny, *LOOSE, *ONE_STEP, *settings)
    expected, numbers = update(resolve(load_config(preset, common))[0])
    in_parts = (*common, "training.micro_batch_size=7")
    found, found_numbers = update(resolve(load_config(preset, in_parts))[0])
    for name, grads in expected.items():
        assert name == "critic" or all(grad.abs().sum() > 0 for grad in grads)
        for ours, theirs in zip(found[name], grads, strict=True):
            assert (ours - theirs).norm() <= 5e-4 * theirs.norm()
    assert found_numbers == pytest.approx(numbers, rel=1e-3, abs=1e-4)


def test_no_more_rows_go_through_a_network_with_gradients_at_once(tiny_config: TinyConfig):
    config = tiny_config("training.micro_batch_size=5")
    learner, batch = learner_and_batch(config)
    networks = learner.networks
    rows: dict[str, list[int]] = {"policy": [], "value": [], "critic": []}

    def seen(name: str, module: nn.Module) -> None:
        def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if torch.is_grad_enabled():
                rows[name].append(args[0].shape[:-1].numel())

        module.register_forward_pre_hook(note)

    seen("policy", networks.policy.network)
    seen("value", networks.value)
    seen("critic", networks.critic.network)
    scores, _ = learner.update_critic(batch.final, 0, 0)
    learner.update_value(batch, scores)
    learner.update_policy(batch, 0)
    assert {name: max(found) for name, found in rows.items()} == {
        "policy": 5,
        "value": 5,
        "critic": 10,  # real and generated
    }
    assert {name: sum(found) for name, found in rows.items()} == {
        "policy": 32 * 4,
        "value": 32 * 4,
        "critic": 3 * 32,  # the penalty's, too
    }


class WholeOnly(type(algorithm_of(Config()))):  # type: ignore[misc]
    """An algorithm of a user's own that knows nothing of parts."""

    splits_batches = False


def test_an_algorithm_that_does_not_split_is_refused(tiny_config: TinyConfig):
    own = f"algorithm={__name__}:WholeOnly"
    tiny_config(own)
    with pytest.raises(UserError, match=r"micro_batch_size: algorithm .* does not split"):
        tiny_config(own, "training.micro_batch_size=4")
