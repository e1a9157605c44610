"""A user's reward behind one face: it gets what it declares, and what it returns is checked."""

from __future__ import annotations

import inspect
import os
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sft_rl.config import TermConfig
from sft_rl.config.extensions import load_object, own_options
from sft_rl.data.dataset import Dataset
from sft_rl.data.pictures import to_rgb
from sft_rl.data.units import Units
from sft_rl.errors import OwnCodeFailed, UserError, did_you_mean
from sft_rl.rewards.http import ServedReward

F = TypeVar("F", bound=Callable[..., Any])

WANTS = ("model", "data", "numpy", "pil")
SHOWN = 6
"""How many numbers of a bad sample an error shows."""


def reward(*, wants: str = "model", has_gradient: bool = False) -> Callable[[F], F]:
    """Declare what a reward wants, as ``@sft_rl.reward(wants="numpy")``; see :class:`Reward`."""

    def declare(function: F) -> F:
        vars(function).update(wants=wants, has_gradient=has_gradient)
        return function

    return declare


class Reward:
    """Scores final samples by somebody's function, object or module, which says what it wants.

    A function says it by :func:`reward`, a class by attributes. ``wants`` is ``"model"`` (a tensor
    (B, *shape) in model units, the default), ``"data"`` (a tensor in the data's units),
    ``"numpy"`` (an array in the data's units, of images uint8) or ``"pil"`` (a list of PIL images).
    With ``has_gradient`` it gets tensors whose gradient is asked for; else detached ones, and each
    sample once. It is called with the samples and, if it takes a second argument and the model is
    conditional, with their labels (B,) or vectors (B, D): a tensor, or an array for the last two;
    of a text-to-image pipeline with their prompts, a list of B texts, and, if it takes a third, the
    prompts' metadata, a list of B dictionaries. It returns scores (B,), a tensor or an array.

    Args:
        function: The user's own; a module is frozen, moved to `device` and set to evaluation.
        name: What errors call it.
        units: The data's units; None leaves model units alone.
        num_classes: Number of classes of the model; 0 for none.
        by_vector: Whether it is conditional on vectors; units of such data say so, too.
        device: Where a module is to be.

    Raises:
        UserError: If it wants what there is not: other units, pictures of points, labels of an
            unconditional model.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str,
        units: Units | None = None,
        num_classes: int = 0,
        by_vector: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        if not callable(function):
            raise UserError(f"reward: {name!r} cannot be called, got {function!r}")
        if isinstance(function, nn.Module):
            function = function.to(device).eval().requires_grad_(False)
        self.function = function
        self.name = name
        self.device = device
        self.units = units
        self.wants = getattr(function, "wants", "model")
        self.has_gradient = bool(getattr(function, "has_gradient", False))
        required, most = _num_arguments(function)
        by_vector |= units is not None and units.samples.conditions is not None
        self.takes_labels = most > 1 and (num_classes > 0 or by_vector)
        self.prompts = None if units is None else units.samples.prompts
        self.takes_metadata = most > 2 and self.prompts is not None and bool(self.prompts.metadata)
        self._check(required)

    def _check(self, required: int) -> None:
        field = f"reward: {self.name!r}"
        if self.wants not in WANTS:
            raise UserError(f"{field} wants {self.wants!r}; {did_you_mean(str(self.wants), WANTS)}")
        if self.wants != "model" and self.units is None:
            raise UserError(f"{field} wants {self.wants!r}: the data's units are not known here")
        if self.wants == "pil" and not (self.units and self.units.is_images):
            raise UserError(f"{field} wants 'pil', but samples are points; use 'numpy'")
        if self.has_gradient and self.wants not in WANTS[:2]:
            raise UserError(f"{field} has_gradient, so it must want 'model' or 'data' tensors")
        if required > 1 and not self.takes_labels:
            raise UserError(
                f"{field} needs labels, but the model is not conditional; see "
                "model.unet.num_class_embeds and data.condition_columns"
            )
        if required > 2 and not self.takes_metadata:
            raise UserError(f"{field} needs the metadata of prompts; see prompts.metadata")

    def __call__(self, x: Tensor, *labels: Tensor) -> Tensor:
        """Score samples (B, *shape) in model units, shape (B,), with gradients if it has them.

        Raises:
            UserError: If what it returns has another shape or is not finite.
            OwnCodeFailed: With the user's own error, and where in their code it was raised.
        """
        if not self.has_gradient:
            with torch.no_grad():
                return self._scores(x.detach(), labels).detach()
        return self._scores(x, labels)

    def _scores(self, x: Tensor, labels: tuple[Tensor, ...]) -> Tensor:
        given = self._wanted(x.to(self.device))
        own = self._beside(labels, as_arrays=not isinstance(given, Tensor))
        try:
            scores = self.function(given, *own)
        except UserError:
            raise
        except Exception as error:  # whatever somebody else's code raises
            details = "".join(traceback.format_exception(error))
            raise OwnCodeFailed(f"reward: {self.name!r} {_where(error)}", details) from error
        return checked_scores(scores, x, name=self.name)

    def _beside(self, labels: tuple[Tensor, ...], *, as_arrays: bool) -> tuple[Any, ...]:
        """What it gets beside samples: nothing, labels, vectors, or prompts and their metadata."""
        if not self.takes_labels:
            return ()
        if self.prompts is not None:
            (numbers,) = (y.tolist() for y in labels)
            said = (self.prompts.texts, self.prompts.metadata)[: 1 + self.takes_metadata]
            return tuple([of_each[i] for i in numbers] for of_each in said)
        if self.wants != "model" and self.units is not None and self.units.samples.conditions:
            labels = tuple(map(self.units.condition_to_data, labels))
        return tuple(y.cpu().numpy() for y in labels) if as_arrays else labels

    def _wanted(self, x: Tensor) -> Any:
        if self.wants == "model":
            return x
        assert self.units is not None, "checked above"
        if self.wants == "data":
            return self.units.in_units(x)
        values = self.units.to_data(x)
        if self.wants == "numpy":
            return values
        from PIL import Image

        assert self.units.samples.pixel_max is not None, "checked above"
        return [Image.fromarray(image) for image in to_rgb(values, 0, self.units.samples.pixel_max)]


def as_reward(
    term: TermConfig,
    given: Any,
    options: dict[str, Any],
    *,
    data: Dataset | None = None,
    **around: Any,
) -> Reward:
    """Find a term's reward: what Python hands over, or a user's by ``module:name``.

    A class is made with an instance of its ``Options`` if it declares any, and with ``data=`` if it
    has ``wants_data``; a function that has ``Options`` gets one as ``options=``.

    Args:
        term: The term's settings.
        given: What Python hands over; None otherwise.
        options: Options of users' own classes and functions.
        data: The run's data; None where they are not.
        around: Further arguments of :class:`Reward`.

    Raises:
        UserError: If there is none, or it does not go with the samples.
    """
    if term.is_url:
        given = ServedReward(
            term.use, name=term.name, timeout_s=term.timeout_s, token_variable=term.token_variable
        )
    loaded = load_object("reward.terms", term.use) if given is None else given
    if isinstance(loaded, type):
        own = (own_options(loaded, options),) if hasattr(loaded, "Options") else ()
        beside = {"data": data} if getattr(loaded, "wants_data", False) else {}
        if beside and data is None:
            raise UserError(f"reward: {term.name!r} wants a run's data, which are not known here")
        try:
            loaded = loaded(*own, **beside)
        except TypeError as error:
            raise UserError(f"reward: {term.name!r} cannot be made: {error}") from error
    elif hasattr(loaded, "Options") and inspect.isroutine(loaded):
        bound = partial(loaded, options=own_options(loaded, options))
        vars(bound).update(vars(loaded))  # what it declares
        loaded = bound
    return Reward(loaded, name=term.name, **around)


def checked_scores(scores: Any, samples: Tensor, *, name: str) -> Tensor:
    """Check what a reward returned for samples (B, *shape), whose device it comes to.

    Raises:
        UserError: If the shape is not (B,), or a score is not finite: with the first such sample.
    """
    try:
        numbers: Tensor = torch.as_tensor(scores, device=samples.device).float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"reward: {name!r} returned {type(scores).__name__}, expected numbers of shape "
            f"({len(samples)},)"
        ) from error
    if numbers.shape != samples.shape[:1]:
        raise UserError(
            f"reward: {name!r} returned shape {tuple(numbers.shape)} for {len(samples)} "
            f"samples, expected ({len(samples)},)"
        )
    finite = torch.isfinite(numbers)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        sample = samples[first].detach().flatten()
        shown = ", ".join(f"{number:.4g}" for number in sample[:SHOWN].tolist())
        more = ", …" if len(sample) > SHOWN else ""
        raise UserError(
            f"reward: {name!r} returned {numbers[first].item()}, which is not finite, for "
            f"sample {first} of {len(samples)}: [{shown}{more}]"
        )
    return numbers


def _num_arguments(function: Callable[..., Any]) -> tuple[int, int]:
    """How many positional arguments a function needs, and how many it takes."""
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):  # of a builtin: as told by its documentation, samples alone
        return 1, 1
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 1, 2
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return sum(p.default is p.empty for p in places), len(places)


def _where(error: Exception) -> str:
    """What somebody's code raised, and the line of it that did."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    said = str(error).splitlines()[0] if str(error) else ""
    place = f"{os.path.basename(frame.filename)}:{frame.lineno}"
    return f"failed in {place}, {frame.name}: {type(error).__name__}: {said}"
