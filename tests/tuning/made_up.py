"""A search's folder as trials leave it, without running any."""

import json
from typing import Any

from sft_rl.config.files import dump_config
from tuning.distribution import Values
from tuning.records import Record, Records
from tuning.search import STEPS, Search
from tuning.space import parse_space

RATE = "policy.learning_rate"
SPACE = {STEPS: {"grid": [2, 4]}, RATE: {"loguniform": [1e-5, 1e-2]}}


def make(space: dict[str, Any] = SPACE, *settings: str, **options: Any) -> Search:
    options = {"num_trials": 4, "seed": 0} | options
    return Search("swiss_roll", settings, parse_space("test", {"space": space}), **options)


def finish(
    search: Search,
    records: Records,
    index: int,
    values: Values,
    *,
    validation: float,
    held_out: float = 0.7,
    before: float = 0.9,
    seed: int | None = None,
) -> None:
    """Leave a trial as it is at its end; its seed is the search's own unless one is given."""
    given = search.trial(index, values) | ({} if seed is None else {"seed": seed})
    curve = ((10, 0.9), (20, validation))
    records.put(Record(**given, state="done", percent=100.0, attempts=1, curve=curve))
    summary = {
        "before": {search.objective.name: before, f"{search.objective.name}_se": 0.004},
        "final": {
            search.objective.name: held_out,
            f"{search.objective.name}_se": 0.004,
            "excess": 0.01,
        },
        "full_step": {search.objective.name: 0.55, "nfe": 1000, "noise_floor": 0.5},
        "policy_sha256": f"{index:064d}",
        "seconds_per_sample": 1e-4,
        "wall_seconds": {"total": 12.5},
    }
    folder = records.run_folder(index)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text(dump_config(search.config(values, given["seed"])))


def fail(search: Search, records: Records, index: int, values: Values) -> None:
    """Leave a trial as it is when it failed for good."""
    given = search.trial(index, values)
    records.put(Record(**given, state="failed", attempts=3, error="training stopped: a collapse"))
