"""Computing in bfloat16 where torch's autocast deems it safe; also what a dry run sees of that."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

NARROWED = frozenset(
    ("conv2d", "linear", "matmul", "__matmul__", "bmm", "baddbmm", "scaled_dot_product_attention")
)
"""What autocast computes in bfloat16 on a CPU, of what these networks call."""


def computing(device: torch.device, *, bfloat16: bool) -> AbstractContextManager[Any]:
    """Autocast on a device, if asked for; also of the "meta" tensors of a dry run, as on a CPU."""
    if not bfloat16:
        return nullcontext()
    return _AsAutocast() if device.type == "meta" else torch.autocast(device.type, torch.bfloat16)


class _AsAutocast(TorchFunctionMode):
    """Casts as autocast does, so that tensors have the sizes that they will have."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") in NARROWED:
            args = tuple(_narrow(arg) for arg in args)
            kwargs = {name: _narrow(arg) for name, arg in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


def _narrow(value: Any) -> Any:
    is_wide = isinstance(value, Tensor) and value.dtype == torch.float32
    return value.to(torch.bfloat16) if is_wide else value
