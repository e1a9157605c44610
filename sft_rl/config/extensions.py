"""Objects from a user's own module, ``my_package.my_module:MyClass``, and their options."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sft_rl.config import Config, Section
from sft_rl.config.files import explain
from sft_rl.errors import NEIGHBOURS, OwnCodeFailed, UserError, did_you_mean


def is_reference(name: str) -> bool:
    """Whether a name refers to a user's object rather than to one of ours."""
    return ":" in name


def load_object(field: str, reference: str) -> Any:
    """Import the object that a setting refers to; the working folder counts as a module path.

    Args:
        field: The setting, for the error.
        reference: ``module:name``.

    Raises:
        UserError: If there is no such module or object.
    """
    module_name, _, name = reference.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), name]):
        raise UserError(
            f"{field}: got {reference!r}; allowed: module:name, as in my_package.mine:Mine"
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"{field}: cannot import {module_name!r}: {error}") from error
    if not hasattr(module, name):
        raise UserError(f"{field}: module {module_name!r} has no {name!r}")
    return getattr(module, name)


def made_by(field: str, reference: str) -> Any:
    """Call a user's function, without arguments, and return what it makes.

    Raises:
        UserError: If there is no such function, or it fails.
    """
    factory = load_object(field, reference)
    try:
        return factory()
    except Exception as error:  # whatever somebody else's code raises
        raise UserError(f"{field}: {reference}() failed: {told(error)}") from error


def told(error: Exception) -> str:
    """Kind and first line of what somebody else's code raised."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def load_class(field: str, reference: str, base: type) -> Any:
    """Import a user's class and check that it is a subclass of `base`.

    Raises:
        UserError: If it is not there or not such a class.
    """
    loaded = load_object(field, reference)
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise UserError(
            f"{field}: {reference!r} is not a subclass of {base.__module__}.{base.__qualname__}"
        )
    return loaded


def options_of(kind: Any) -> type[Section]:
    """The section of settings that a user's class or function declares as its ``Options``."""
    declared = getattr(kind, "Options", Section)
    if not (isinstance(declared, type) and issubclass(declared, Section)):
        name = getattr(kind, "__qualname__", repr(kind))
        raise UserError(f"options: {name}.Options must be a subclass of sft_rl.config.Section")
    return declared


def own_options(kind: Any, options: Mapping[str, Any]) -> Section:
    """Check the options that a user's class or function declares; return them typed.

    Raises:
        UserError: Naming an option whose value is not allowed.
    """
    declared = options_of(kind)
    given = {name: value for name, value in options.items() if name in declared.model_fields}
    try:
        return declared.model_validate(given)
    except ValidationError as error:
        raise UserError(f"options.{explain(error)}") from error


def with_typed_options(config: Config) -> Config:
    """Fill in and check the options that the user's own classes and functions declare.

    Importing them is how that is known.

    Raises:
        UserError: For an option that nobody declares, or two do, or a value that is not allowed.
    """
    names = {
        "algorithm": config.algorithm,
        "critic.objective": config.critic.objective,
        **{f"reward.terms ({t.name})": t.use for t in config.reward.terms if not t.is_url},
    }
    kinds = {f: load_object(f, name) for f, name in names.items() if is_reference(name)}
    typed: dict[str, Any] = {}
    for field, kind in kinds.items():
        own = own_options(kind, config.options).model_dump(mode="json")
        if shared := sorted(typed.keys() & own.keys()):
            raise UserError(f"options.{shared[0]}: {names[field]} and another declare it; rename")
        typed |= own
    for name in config.options:
        if name not in typed:
            hint = did_you_mean(name, typed) if typed else "nothing of your own declares options"
            raise UserError(f"options.{name}: unknown option; {hint}")
    return config.model_copy(update={"options": typed})


@contextmanager
def blaming_users(folder: Path | None = None) -> Iterator[None]:
    """Turn an error out of a user's own code into one line that says where; ours stay as they are.

    Args:
        folder: Where the whole traceback goes, as ``error.txt``; none keeps none.

    Raises:
        OwnCodeFailed: Naming the user's function, its file and line, and the traceback's file.
    """
    try:
        yield
    except OwnCodeFailed as error:
        raise _with_details_in(folder, error) from error
    except UserError:
        raise
    except Exception as error:
        frame = _users_frame(error)
        if frame is None:
            raise
        where = f"{frame.name} ({frame.filename}, line {frame.lineno})"
        message = (str(error).strip().splitlines() or ["no message"])[0]
        failed = OwnCodeFailed(
            f"{where} failed: {type(error).__name__}: {message}",
            "".join(traceback.format_exception(error)),
        )
        raise _with_details_in(folder, failed) from error


def _with_details_in(folder: Path | None, error: OwnCodeFailed) -> OwnCodeFailed:
    """Write the traceback into a folder; return the error with a word on where it is."""
    if folder is None:
        return error
    file = folder / "error.txt"
    file.write_text(error.details)
    return OwnCodeFailed(f"{error}; its traceback is in {file}", error.details)


def _users_frame(error: Exception) -> traceback.FrameSummary | None:
    """The innermost place of an error that is neither ours nor a library's."""
    home, paths = Path(__file__).parents[2], sysconfig.get_paths()
    others = [home / name for name in ("sft_rl", *NEIGHBOURS)]
    others += [Path(paths[kind]) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_file() and not any(file.is_relative_to(place) for place in others):
            return frame
    return None
