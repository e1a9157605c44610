"""Errors that are meant for people."""

import difflib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

MOST_NAMES = 24
"""How many names a hint lists."""
MOST_SHOWN = 200
"""How many characters of what was given an error shows."""
NEIGHBOURS = ("envs", "tuning", "cluster")
"""Our packages beside this one, whose names others may use, too."""


class UserError(ValueError):
    """Wrong input: one line that names the field, what was given and what is allowed.

    The command line prints it without a traceback and exits with `exit_code`. What it quotes may
    have ends of lines, such as a column's name: they become blanks.
    """

    exit_code = 2

    def __init__(self, text: str = "") -> None:
        super().__init__(" ".join(text.splitlines()))


class RunFailed(UserError):
    """The input was right, but the run could not go on: a full disk, a worker's own error."""

    exit_code = 1


class OwnCodeFailed(RunFailed):
    """A user's own code raised something.

    Args:
        text: One line: whose code, where in it, and what.
        details: The whole traceback.
    """

    def __init__(self, text: str, details: str = "") -> None:
        super().__init__(text)
        self.details = details


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


def shortened(given: object) -> str:
    """Return what was given as an error shows it: quoted, on one line, its middle left out."""
    text = repr(given)
    return text if len(text) <= MOST_SHOWN else f"{text[:60]}… ({len(text)} characters)"


def first_line(error: BaseException) -> str:
    """Return the beginning of an error's text, and its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def last_line(error: BaseException) -> str:
    """Return the end of an error's text, where Ray's long ones say what it was."""
    return (str(error).strip().splitlines() or [""])[-1]


def home_expanded(path: str | Path, field: str = "path") -> Path:
    """Put a home folder for a leading ``~``, which a shell leaves behind a ``=``.

    Raises:
        UserError: If nobody has the name after the ``~``.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{field}: {path}: nobody has such a home folder") from error


def check_neighbours() -> None:
    """Refuse a stranger that Python would import in place of `envs`, `tuning` or `cluster`.

    Nothing is imported. A stranger behind ours on the path does no harm and is not looked for.

    Raises:
        UserError: Naming the stranger's place and ours.
    """
    home = Path(__file__).resolve().parents[1]
    for name in NEIGHBOURS:
        place, own = _place_of(name), home / name
        if place is None:
            raise UserError(f"{name}: Python does not find {own}; install sft-rl again")
        if place.resolve() != own:
            raise UserError(
                f"{name}: Python finds {place} before sft-rl's own {own}; rename it, or take its "
                "folder off the path (PYTHONPATH, or the folder that Python was started in)"
            )


def _place_of(name: str) -> Path | None:
    """Where a top-level package (its folder) or module (its file) is imported from, or was."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module that a program made by hand
        return Path("<memory>")
    if spec is None:
        return None
    folders = spec.submodule_search_locations
    return Path(next(iter(folders)) if folders else spec.origin or "<memory>")
