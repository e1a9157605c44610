"""Weights beside an adapter in bfloat16: the same bits in half the memory."""

from pathlib import Path

import pytest
import torch

from sft_rl.config.files import load_config
from sft_rl.jobs.dry_run import requirements_of
from sft_rl.runs.parts import full_step_network, policy_of
from sft_rl.runs.resolve import resolve

LABELS = torch.tensor([0, 2])


@pytest.mark.parametrize(
    "kind", ["sd3_folder", pytest.param("pipeline_folder", marks=pytest.mark.slow)]
)
def test_what_is_rounded_at_every_call_is_kept_rounded(
    settings: list[str], kind: str, request: pytest.FixtureRequest
):
    folder: Path = request.getfixturevalue(kind)
    own = [*settings, f"pretrained.path={folder}", "sampler.start_time=19", "data.num_points=12"]
    config, data = resolve(load_config("images", [*own, "model.precision=bfloat16"]))
    network, _ = full_step_network(config, data)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    policy = policy_of(config, network)
    adapted = policy.network
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)

    def seen() -> list[torch.Tensor]:
        x = data.latents[:2].clone().requires_grad_()
        output = policy.mean(x, torch.tensor(1), LABELS)
        trained = [p for p in adapted.parameters() if p.requires_grad]
        return [output, *torch.autograd.grad(output.square().sum(), [x, *trained])]

    before, told = seen(), adapted.bytes_at_rest
    copied = adapted.base()
    adapted.round_base()
    for one, other in zip(before, seen(), strict=True):
        assert torch.equal(one, other)
    at_rest = [p for p in adapted.parameters() if not p.requires_grad]
    taken = sum(p.numel() * p.element_size() for p in at_rest)
    assert taken == told < 0.6 * 4 * sum(p.numel() for p in at_rest)
    assert adapted.prompts.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in policy.parameters() if p.requires_grad)
    adapted.load_base(state)
    after = copied.state_dict()  # which shares them
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    model = config.model.model_copy(update={"precision": "float32"})
    wide = config.model_copy(update={"model": model})
    bytes_of = [requirements_of(c, None).num_bytes for c in (wide, config)]
    assert bytes_of[0] - bytes_of[1] >= 2 * (4 * sum(p.numel() for p in at_rest) - taken)
