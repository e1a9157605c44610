"""Which of a folder's checkpoints are a run's own, and whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sft_rl.config import ResolvedConfig
from sft_rl.config.files import explain
from sft_rl.errors import UserError, first_line
from sft_rl.runs.changes import changes
from sft_rl.storage.checkpoint import Checkpoint, DamagedCheckpoint, load


def checkpoints(run: Path) -> list[Path]:
    """Folders of a run's checkpoints, the newest last."""
    found = (p for p in (run / "checkpoints").glob("*") if p.name.isdecimal())
    return sorted(found, key=lambda p: int(p.name))


def newest(
    run: Path,
    own: dict[str, Any],
    *,
    use: Callable[[Checkpoint], None],
    warn: Callable[[str], None],
    place: str,
    before: float = math.inf,
) -> Checkpoint:
    """Load the newest whole checkpoint of a run, going back over others.

    Args:
        run: The run's folder.
        own: The run's settings.
        use: Takes what was loaded; raises `KeyError` or `RuntimeError` if it does not fit.
        warn: Is told of those that were passed over.
        place: The run's folder, for people.
        before: Only earlier iterations count.

    Raises:
        UserError: If there is none.
    """
    damages = []
    for folder in reversed(checkpoints(run)):
        if int(folder.name) >= before:
            continue
        try:
            loaded = load(folder)
            _check_own(loaded, folder, own)
            use(loaded)
        except DamagedCheckpoint as damage:
            damages.append(str(damage))
            continue
        except (KeyError, RuntimeError) as error:
            damages.append(f"checkpoint: {folder} does not fit the run: {first_line(error)}")
            continue
        for damage_text in damages:
            warn(f"{damage_text}; going back to {folder.name}")
        return loaded
    if damages:
        raise DamagedCheckpoint(f"run: no whole checkpoint is left: {damages[0]}")
    raise UserError(f"run: {place} has no checkpoint yet")


def _check_own(loaded: Checkpoint, folder: Path, own: dict[str, Any]) -> None:
    """Refuse a checkpoint of another run, or of other settings.

    Raises:
        DamagedCheckpoint: Saying in what it differs.
    """
    meta = loaded.meta
    try:
        config = ResolvedConfig.model_validate(meta["config"])  # fills in newer settings
        iteration = meta["iteration"]
    except (KeyError, ValidationError) as error:
        why = explain(error) if isinstance(error, ValidationError) else f"it has no {error}"
        raise DamagedCheckpoint(f"checkpoint: {folder} is of another version: {why}") from error
    theirs = config.model_dump()
    changed = changes(theirs, own, fewer=True)
    if changed:
        raise DamagedCheckpoint(
            f"checkpoint: {folder} is of another configuration: {'; '.join(changed)}"
        )
    if theirs["run_id"] != own["run_id"] or iteration != int(folder.name):
        raise DamagedCheckpoint(
            f"checkpoint: {folder} is of another run, or of iteration {iteration}"
        )
