"""Low-rank adapters (LoRA; Hu et al., 2021) by peft: small matrices beside weights that rest."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from sft_rl.config import LoraConfig
from sft_rl.errors import UserError, first_line
from sft_rl.seeding import derive_seed

ATTENTION = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
)
"""Projections of attention, as diffusers calls them; the last four of tokens beside latents."""
LAYERS = (nn.Linear, nn.Conv2d)
"""Layers that get an adapter."""
NAME = "default"
"""What peft calls the one adapter."""


class Adapted(nn.Module):
    r"""A network whose layers compute :math:`W x + \frac{\alpha}{r} B A x`, W at rest.

    A is random and B zero at first, so that it starts as the network. A and B alone have
    gradients, and are its state: what travels, and what a checkpoint holds. Copies share W, and the
    modules that hold nothing else.

    Args:
        network: The network; it is changed in place.
        options: Rank, size and layers.
        seed: The run's seed, which A is drawn from.

    Raises:
        UserError: If peft is not installed, or there are no such layers.
    """

    def __init__(self, network: nn.Module, options: LoraConfig, *, seed: int) -> None:
        super().__init__()
        peft = _peft()
        self.config = peft.LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha or options.rank,
            target_modules=list(_targets(inner_of(network), options.targets)),
        )
        self.network = network.requires_grad_(False)
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(seed, "lora weights"))
            try:
                peft.inject_adapter_in_model(self.config, inner_of(network), NAME)
            except ValueError as error:
                raise UserError(f"policy.lora.targets: {first_line(error)}") from error
        self.at_rest = [name for name in self.state_dict() if ".lora_" not in name]
        self.register_state_dict_post_hook(_leave_base_out)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_base_is_there)  # type: ignore[no-untyped-call]

    @property
    def conditions(self) -> Tensor | None:
        """What the network keeps to draw what samples are conditional on."""
        return getattr(self.network, "conditions", None)

    @property
    def prompts(self) -> Tensor | None:
        """The embeddings of prompts that the network keeps."""
        return getattr(self.network, "prompts", None)

    def forward(self, x: Tensor, t: Tensor, *labels: Tensor) -> Tensor:
        """Call the network."""
        return self.network(x, t, *labels)  # type: ignore[no-any-return]

    def adapter(self) -> dict[str, Tensor]:
        """A and B by peft's names for them, in the network of others where there is one."""
        return dict(_peft().get_peft_model_state_dict(inner_of(self.network), adapter_name=NAME))

    def resting(self) -> Iterator[nn.Module]:
        """The largest modules that have weights at rest alone, and are called."""
        return _resting(self.network)

    @property
    def bytes_at_rest(self) -> int:
        """What weights at rest take while the adapter is trained."""
        rounded = {id(tensor) for tensor in self._rounded().values()}
        return sum(
            p.numel() * (2 if id(p) in rounded else p.element_size())
            for p in self.parameters()
            if not p.requires_grad
        )

    def round_base(self) -> None:
        """Keep weights at rest in bfloat16, where the network rounds them at every call anyway.

        They take half the memory, and all results stay the same bits. Copies share them.
        """
        for tensor in self._rounded().values():
            tensor.data = tensor.data.to(torch.bfloat16)

    def load_base(self, state: Mapping[str, Tensor]) -> None:
        """Undo :meth:`round_base` by the state of the network without an adapter."""
        for name, tensor in self._rounded().items():
            tensor.data = state[name].to(tensor.device)

    def _rounded(self) -> dict[str, Tensor]:
        """What autocast rounds at every call, by its name in the network without an adapter."""
        if not getattr(self.network, "in_bfloat16", False):
            return {}
        kept = getattr(self.network, "of_prompts", ())
        found = {name: self.network.get_buffer(name) for name in kept}
        for layer, module in self.network.named_modules():
            if isinstance(module, LAYERS):
                own = module.named_parameters(recurse=False)
                found |= {f"{layer}.{name}": p for name, p in own if not p.requires_grad}
        return {name.replace(".base_layer.", "."): tensor for name, tensor in found.items()}

    def switch_off(self) -> None:
        """Compute W x alone from now on."""
        for _, layer in _layers(self.network):
            layer.enable_adapters(False)

    def base(self) -> nn.Module:
        """The network without an adapter; its weights are shared."""
        return _taken_out(copy.deepcopy(self).network, merge=False)

    def merged(self) -> nn.Module:
        """The network with its adapter in its weights, which are copied."""
        return _taken_out(copy.deepcopy(self.network), merge=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        own = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        memo.update({id(own[name]): own[name] for name in self.at_rest if name in own})
        memo.update({id(module): module for module in self.resting()})
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        state = self.__getstate__()  # type: ignore[no-untyped-call]
        copied.__setstate__(copy.deepcopy(state, memo))  # type: ignore[no-untyped-call]
        return copied


def inner_of(network: nn.Module) -> nn.Module:
    """The network of others inside one of ours, or ours, if there is none: it names the layers."""
    return network.get_submodule(getattr(network, "INNER", ""))


def base_of(network: nn.Module) -> nn.Module:
    """A network without its adapter, if it has one."""
    return network.base() if isinstance(network, Adapted) else network


def merged(network: nn.Module) -> nn.Module:
    """A network with its adapter in its weights, if it has one."""
    return network.merged() if isinstance(network, Adapted) else network


def _leave_base_out(adapted: Adapted, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    for name in adapted.at_rest:
        del state[prefix + name]


def _base_is_there(adapted: Adapted, found: Any) -> None:
    base = tuple(adapted.at_rest)
    found.missing_keys[:] = [name for name in found.missing_keys if not name.endswith(base)]


def _resting(module: nn.Module) -> Iterator[nn.Module]:
    names = [name for name, _ in module.named_parameters()]
    called = not isinstance(module, nn.ModuleList | nn.ModuleDict)
    if names and called and not any("lora_" in name for name in names):
        yield module
        return
    for name, child in module.named_children():
        if not name.startswith("lora_"):
            yield from _resting(child)


def _taken_out(network: nn.Module, *, merge: bool) -> nn.Module:
    """Put a network's own layers back in place of those with an adapter."""
    for name, layer in _layers(network):
        if merge:
            layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, layer.get_base_layer())
    del inner_of(network).peft_config
    return network


def _layers(network: nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [item for item in network.named_modules() if isinstance(item[1], BaseTunerLayer)]


def _targets(network: nn.Module, given: tuple[str, ...] | None) -> tuple[str, ...]:
    """Names, or ends of names, of the layers that get an adapter.

    Raises:
        UserError: Listing what there is, if one matches nothing.
    """
    names = [name for name, layer in network.named_modules() if isinstance(layer, LAYERS)]
    if given is None:
        found = tuple(end for end in ATTENTION if any(_ends(name, end) for name in names))
        return found or tuple(names)
    for end in given:
        if not any(_ends(name, end) for name in names):
            there = ", ".join(sorted({_end(name) for name in names})) or "none"
            raise UserError(
                f"policy.lora.targets: {end!r} matches no layer; linear layers and convolutions "
                f"of the network end in: {there}"
            )
    return given


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _end(name: str) -> str:
    """The last part of a name, with the one before it where that is a number."""
    *_, before, last = ["", *name.split(".")]
    return f"{before}.{last}" if last.isdecimal() and before else last


def _peft() -> Any:
    try:
        import peft  # here: it takes seconds to import, and few need it
    except ImportError as error:
        raise UserError(
            "policy.lora.rank: needs peft, which is not installed: pip install 'sft-rl[lora]'"
        ) from error
    return peft
