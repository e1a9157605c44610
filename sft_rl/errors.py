"""Errors that are meant for people."""

import difflib
from collections.abc import Iterable

MOST_NAMES = 24
"""How many names a hint lists."""


class UserError(ValueError):
    """Wrong input: one line that names the field, what was given and what is allowed.

    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 2


class RunFailed(UserError):
    """The input was right, but the run could not go on: a full disk, a worker's own error."""

    exit_code = 1


class NotFiniteError(UserError):
    """Numbers have left the finite range: an outside policy's fault, or that of its training."""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return the hint that ends an error about an unknown name: the nearest valid ones."""
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    section = given.partition(".")[0] + "."
    names = [name for name in names if name.startswith(section)] or names
    if len(names) > MOST_NAMES:  # keys of a configuration: its sections are enough
        names = sorted({name.partition(".")[0] for name in names})
    return f"choose from: {', '.join(names)}"


def last_line(error: BaseException) -> str:
    """Return the end of an error's text, where Ray's long ones say what it was."""
    return (str(error).strip().splitlines() or [""])[-1]
