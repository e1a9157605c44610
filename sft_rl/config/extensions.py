"""Objects from a user's own module, named as ``my_package.my_module:MyClass``."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from sft_rl.errors import UserError


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
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"{field}: cannot import {module_name!r}: {error}") from error
    if not hasattr(module, name):
        raise UserError(f"{field}: module {module_name!r} has no {name!r}")
    return getattr(module, name)


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
