"""Optimisers, and small pieces around them: decays, averages, gradients in parts."""

import inspect
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sft_rl.config import CriticConfig, PolicyConfig, ValueConfig
from sft_rl.policy import DenoisingPolicy
from sft_rl.storage.dtensors import is_split, own_part, whole
from sft_rl.types import Loss

Kind = TypeVar("Kind", bound=Optimizer)


def eager(kind: type[Kind]) -> type[Kind]:
    """An optimiser of torch's that does without its compiler, whose import takes over a second.

    Torch wraps what would stop the compiler, and the wrapper imports it even if nothing is
    compiled. Here the methods are those below the wrappers; steps are the same to the last bit.
    """
    names = ("add_param_group", "state_dict", "load_state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), {**methods, "step": step})


Adam = eager(torch.optim.Adam)
RMSprop = eager(torch.optim.RMSprop)


def policy_optimizer(policy: DenoisingPolicy, options: PolicyConfig) -> Optimizer:
    """Adam of what is trained of a policy, its learned noise at a rate of its own."""
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in policy.network.parameters() if p.requires_grad],
            "lr": options.learning_rate,
        }
    ]
    if policy.log_std_scale is not None:
        groups.append({"params": [policy.log_std_scale], "lr": options.std_learning_rate})
    return Adam(groups, betas=options.adam_betas, fused=True)


def judge_optimizer(
    name: str, judge: nn.Module, options: CriticConfig | ValueConfig
) -> dict[str, Optimizer]:
    """Adam of a critic or value, by its name; none for one without parameters."""
    parameters = list(judge.parameters())
    if not parameters:  # a critic without a network, or one that takes no part
        return {}
    return {name: Adam(parameters, lr=options.learning_rate, betas=options.adam_betas, fused=True)}


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients so that their norm is at most `max_norm`; return what it was.

    It is the norm of all together, those that are split among learners included.
    """
    kinds: dict[bool, list[nn.Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault(is_split(parameter), []).append(parameter)
    norms = [
        whole(nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None]))
        for kind in kinds.values()
    ]
    norm = norms[0] if len(norms) == 1 else torch.hypot(*norms)
    for kind in kinds.values():  # torch does not mix them
        nn.utils.clip_grads_with_norm_(kind, max_norm, norm)
    return norm


def decay_factor(kind: str, progress: float) -> float:
    """Factor on a learning rate at `progress` in 0..1: none, linear or cosine, down to 0."""
    if kind == "linear":
        return 1.0 - progress
    if kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0


@torch.no_grad()
def update_average(
    average: nn.Module, module: nn.Module, *, decay: float, num_updates: int, ramp: float = 9.0
) -> None:
    """Move a moving average towards a module's parameters.

    After n updates the decay is n / (n + ramp), but at most `decay`: the average forgets where it
    started, holds about the last n / ramp updates at first (Shamir and Zhang, 2013) and is an
    exponential one from then on. Parameters that both share stay as they are.
    """
    done = num_updates + 1
    weight = 1.0 - min(decay, done / (done + ramp))
    pairs = zip(average.parameters(), module.parameters(), strict=True)
    moved = ((own_part(a), own_part(b)) for a, b in pairs if a is not b)
    own, new = zip(*moved, strict=True)
    torch._foreach_lerp_(own, new, weight)


def micro_batches(num_rows: int, size: int | None) -> Iterator[tuple[slice, float]]:
    """Cut rows into parts of at most `size`, or into one; yield each with its share of them."""
    size = size or num_rows
    for start in range(0, num_rows, size):
        stop = min(start + size, num_rows)
        yield slice(start, stop), (stop - start) / num_rows


def accumulate(losses: Iterable[tuple[Loss, float]]) -> Loss:
    """Back-propagate a batch's loss in parts, so that the activations of one are kept at a time.

    Args:
        losses: Loss of each part, a mean over its rows, and its share of the rows.

    Returns:
        The batch's loss, detached; of its numbers, scalars are averaged over the parts that have
        them, and others joined.
    """
    values, numbers, shares = [], defaultdict(list), defaultdict(list)
    for loss, share in losses:
        (loss.value * share).backward()  # type: ignore[no-untyped-call]
        values.append(loss.value.detach() * share)
        for name, number in loss.metrics.items():
            tensor = torch.as_tensor(number).detach()
            numbers[name].append(tensor if tensor.ndim else tensor * share)
            shares[name].append(share)

    def joined(name: str, parts: list[Tensor]) -> Tensor:
        if parts[0].ndim:
            return torch.cat(parts, dim=-1)
        total = torch.stack(parts).sum()
        return total if len(parts) == len(values) else total / sum(shares[name])

    return Loss(torch.stack(values).sum(), {k: joined(k, n) for k, n in numbers.items()})
