"""What travels to the cluster: the project's own code and the files that a job names."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import sft_rl
from sft_rl.errors import UserError
from sft_rl.storage.secrets import holds_secret

PACKAGES = ("sft_rl", "envs", "tuning", "cluster")
MAX_BYTES = 100 * 2**20
"""Ray's job server refuses larger uploads."""
NUM_LISTED = 5
SUFFIXES = (".py", ".yaml", ".typed")
TEXTS = (".py", ".yaml", ".yml", ".json", ".toml", ".ini", ".cfg", ".sh", ".env")
"""Files in which people leave secrets."""


def stage(folder: Path, extra: Iterable[str]) -> None:
    """Copy the project's code, and `extra` files or folders, into an empty folder.

    Args:
        folder: Becomes the job's working directory.
        extra: Paths relative to the current directory, at the same place in the job.

    Raises:
        UserError: A path is missing or leads out of the current directory, or all is too large.
    """
    root = Path(sft_rl.__file__).parents[1]
    files = {
        path.relative_to(root): path
        for package in PACKAGES
        for path in _files(root / package)
        if path.suffix in SUFFIXES
    }
    for name in extra:
        for path in _extra(name):
            _refuse_secrets(path)
            files[path] = path
    check_size({str(name): path.stat().st_size for name, path in files.items()})
    for relative, path in files.items():
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def check_size(sizes: dict[str, int]) -> None:
    """Refuse a package that the job server would not take, and say what fills it.

    Raises:
        UserError: With the largest files.
    """
    total = sum(sizes.values())
    if total <= MAX_BYTES:
        return
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:NUM_LISTED]
    listed = ", ".join(f"{name} ({size / 2**20:.1f} MiB)" for name, size in largest)
    raise UserError(
        f"package: {total / 2**20:.1f} MiB, allowed: {MAX_BYTES // 2**20} MiB; the largest files: "
        f"{listed}; put data on storage that the nodes share and give its absolute path"
    )


def _extra(name: str) -> list[Path]:
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{name}: cannot travel; allowed: a path inside the current directory")
    if not path.exists():
        raise UserError(f"{name}: does not exist here, and the job needs it")
    return list(_files(path)) if path.is_dir() else [path]


def _refuse_secrets(file: Path) -> None:
    """Refuse a file of settings or code that holds what looks like a secret.

    Raises:
        UserError: Naming the file; the secret is not repeated.
    """
    if file.suffix in TEXTS or file.name.startswith(".env"):
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), start=1):
            if holds_secret(line):
                raise UserError(
                    f"{file}: line {number} looks like a secret; it would travel to the cluster: "
                    "give it by the nodes' environment"
                )


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files under a folder, without hidden ones and Python's leftovers."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if path.is_file() and not any(p.startswith(".") or p == "__pycache__" for p in inside):
            yield path
