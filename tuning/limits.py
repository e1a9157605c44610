"""When a session of a search starts no more trials, and how many run at once."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sft_rl.distributed.placement import Nodes, fits, run_bundles
from sft_rl.errors import UserError
from tuning.ranking import configurations, since_the_best
from tuning.records import Records
from tuning.search import Search

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Limits:
    """Bounds on a session; they change no trial.

    Attributes:
        time_budget: Seconds after which no configuration is begun.
        patience: Configurations in a row without a new best after which none is begun.
        max_concurrent: Trials at a time, at most.
    """

    time_budget: float | None = None
    patience: int | None = None
    max_concurrent: int | None = None

    def check(self, search: Search) -> None:
        """Refuse what cannot work.

        Raises:
            UserError: Naming the option, what was given and what is allowed.
        """
        given = {
            "--time-budget": self.time_budget,
            "--patience": self.patience,
            "--max-concurrent": self.max_concurrent,
        }
        for name, limit in given.items():
            if limit is None:
                continue
            if limit <= 0:
                least = "longer than 0 s" if name == "--time-budget" else "at least 1"
                raise UserError(f"{name}: must be {least}, got {limit:g}")
            if search.scheduler == "pbt":
                raise UserError(f"{name}: under pbt all trials run side by side, to their end")

    def at_once(self, search: Search, nodes: Nodes) -> int:
        """How many trials run side by side on nodes that have nothing else to do, at least 1."""
        base, num = search.base, 1
        trial = run_bundles(base.learner, base.rollout, base.reward)
        most = min(search.num_runs, self.max_concurrent or search.num_runs)
        while num < most and fits(nodes.values(), trial * (num + 1)):
            num += 1
        return num

    def reached(self, search: Search, records: Records, started: float) -> str:
        """Say why no configuration is begun any more; empty while some are.

        Args:
            search: The search.
            records: Its trials, of which there is always one.
            started: When the first one could begin, by ``time.monotonic``.
        """
        if len(records) == 0:
            return ""
        if self.time_budget is not None and time.monotonic() - started > self.time_budget:
            return f"--time-budget: {self.time_budget:g} s are over"
        if self.patience is not None:
            since = since_the_best(configurations(search, records))
            if since >= self.patience:
                return f"--patience: {since} configurations in a row were no new best"
        return ""


NO_LIMITS = Limits()


def seconds(text: str) -> float:
    """Read a duration, ``90m``, ``2h`` or a number of seconds.

    Raises:
        UserError: If it is none.
    """
    number, factor = (text[:-1], UNITS[text[-1]]) if text[-1:] in UNITS else (text, 1.0)
    try:
        return factor * float(number)
    except ValueError:
        raise UserError(
            f"--time-budget: expected a duration such as 90m, 2h or 3600, got {text!r}"
        ) from None
