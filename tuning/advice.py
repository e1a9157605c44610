"""What a search has taught, in one sentence for each number of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tuning.final import Result, verdict
from tuning.ranking import Configuration, Estimate, best_by_steps
from tuning.search import Search
from tuning.sensitivity import LEAST, Effect, Sensitivity


def advice(
    search: Search,
    tried: Sequence[Configuration],
    final: Sequence[Result],
    found: Sensitivity | None,
) -> str:
    """Say how few steps can be afforded, and which values to take; Markdown, empty without a best.

    Args:
        search: The search.
        tried: Its configurations.
        final: What was trained again.
        found: How much each key matters.
    """
    best = best_by_steps(tried)
    if not best:
        return ""
    winners = {r.contender.num_steps: r for r in final if r.contender.is_winner}
    own = {r.contender.num_steps: r for r in final if r.contender.is_own}
    reached = {
        steps: winners[steps].held_out if steps in winners else one.validation
        for steps, one in best.items()
    }
    lines = ["## Advice", ""]
    for steps, estimate in reached.items():
        data = "held-out" if steps in winners else "validation"
        parts = [f"{estimate} on {data} data"]
        if steps in winners:
            parts[0] += f", {verdict(winners[steps], own[steps])}"
        if found is not None and found.is_known:
            parts += _values(found.at(steps))
        lines.append(f"- **{steps} steps**: {'; '.join(parts)}.")
    lines += ["", f"{_fewest(reached)}{_trust(search, tried, found)}"]
    return "\n".join(lines)


def _values(effects: Sequence[Effect]) -> list[str]:
    """Say what to take of each key that matters, and which show no effect."""
    seen = [effect for effect in effects if effect.is_seen]
    parts = [f"take {', '.join(map(_value, seen))}"] if seen else []
    if len(seen) > 1:
        parts[0] += f" ({seen[0].key} matters most)"
    if unseen := [effect.key for effect in effects if not effect.is_seen]:
        parts.append(f"no effect of {' and '.join(unseen)} is seen")
    return parts


def _value(effect: Effect) -> str:
    good, values = effect.good, effect.values
    if not effect.are_numbers:
        return f"{effect.key} {' or '.join(map(str, good))}"
    shown = f"{effect.key} {_short(good[0])}"
    if len(good) > 1:
        shown += f" to {_short(good[-1])}"
    if effect.best in (values[0], values[-1]) and len(values) > 2:
        shown += f" (best at the edge of the space, {_short(effect.best)}: widen it)"
    return shown


def _short(value: float) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _fewest(reached: dict[int, Estimate]) -> str:
    """Say which number of steps does as well as the best, where there are errors."""
    if len(reached) < 2 or any(math.isnan(estimate.error) for estimate in reached.values()):
        return ""
    best = min(reached, key=lambda steps: reached[steps].mean)
    fewest = min(steps for steps, one in reached.items() if not reached[best].is_below(one))
    if fewest == best:
        return f"Nothing with fewer steps is as good as {best}. "
    return f"{fewest} steps are as good as {best}, as far as the errors tell. "


def _trust(search: Search, tried: Sequence[Configuration], found: Sensitivity | None) -> str:
    """Say what the ranges rest on, or why there are none."""
    done = sum(one.state == "done" for one in tried)
    if found is None:
        return (
            f"{done} finished configurations are too few to say which values matter; that takes "
            f"{LEAST} for each searched key."
            if search.scheduler != "pbt"
            else ""
        )
    shares = (
        f"A Gaussian process predicts {max(found.explained, 0.0):.0%} of the differences between "
        f"configurations from the others, by chance up to {max(found.by_chance, 0.0):.0%}"
    )
    if not found.is_known:
        return f"{shares}: {done} configurations do not show which values matter."
    return f"Ranges: not told from the best by two standard errors, other keys averaged. {shares}."
