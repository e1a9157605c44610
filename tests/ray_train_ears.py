"""A callback of Ray Train that writes down what it is told, beside Ray Train's own files."""

import json
from pathlib import Path
from typing import Any

from ray.train import UserCallback


class Ears(UserCallback):
    def after_report(self, run_context: Any, metrics: list[Any], checkpoint: Any) -> None:
        self.write(run_context, {"reported": [one["two_sample"] for one in metrics]})

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self.write(run_context, {"died": list(worker_exceptions)})

    def write(self, run_context: Any, what: dict[str, Any]) -> None:
        with (Path(run_context.run_config.storage_path) / "heard.jsonl").open("a") as file:
            file.write(json.dumps(what) + "\n")
