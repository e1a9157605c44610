"""The answer of a search: how few steps can be afforded, and with which settings."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from sft_rl.config.files import dump_config, load_config_file
from tuning.advice import advice
from tuning.distribution import Values
from tuning.final import Result, final_seeds, measured, results, verdict
from tuning.plots import plot_cost, plot_curves, plot_parallel, plot_pareto, plot_sensitivity
from tuning.progress import show_values
from tuning.ranking import (
    WIDTH,
    Configuration,
    best_by_steps,
    configurations,
    pareto_front,
    validation,
)
from tuning.records import Record, Records
from tuning.search import STEPS, Search
from tuning.sensitivity import Sensitivity, sensitivity

TIMING = ("seconds_per_sample", "seconds", "attempts")
"""Columns that differ between two runs of the same search; they come last."""
PICTURES = {
    "pareto.png": "distance against steps",
    "sensitivity.png": "what each key does",
    "cost.png": "distance against cost",
    "curves.png": "learning curves",
    "parallel.png": "parallel coordinates",
}


def write_report(search: Search, folder: Path, records: Records, finals: Records) -> str:
    """Write tables, pictures and the best configurations into a search's folder.

    Args:
        search: The search.
        folder: Its folder.
        records: Its trials.
        finals: Those that trained the winners again.

    Returns:
        The tables of the best by number of steps, as Markdown.
    """
    for old in (
        *folder.glob("best-T*.yaml"),
        folder / "final.csv",
        folder / "sensitivity.csv",
        *map(folder.joinpath, PICTURES),
    ):
        old.unlink(missing_ok=True)
    tried, final = configurations(search, records), results(search, records, finals)
    best = best_by_steps(tried)
    for num_steps, one in best.items():
        config = load_config_file(str(records.settings(one.trials[0].index)))
        (folder / f"best-T{num_steps}.yaml").write_text(dump_config(config))
    pd.DataFrame(_rows(search, records, tried)).to_csv(folder / "results.csv", index=False)
    if final:
        pd.DataFrame(_final_rows(final, finals)).to_csv(folder / "final.csv", index=False)
    effects = sensitivity(search, tried)
    if best:
        full_step = _summary(records, best)["full_step"]
        plot_pareto(folder / "pareto.png", search, tried, final, full_step)
        plot_parallel(folder / "parallel.png", search, tried)
        plot_cost(folder / "cost.png", search, tried, _seconds(records, tried))
    if effects is not None:
        plot_sensitivity(folder / "sensitivity.png", search, tried, effects)
        pd.DataFrame(_effect_rows(effects)).to_csv(folder / "sensitivity.csv", index=False)
    if any(record.curve for record in records.all()):
        plot_curves(folder / "curves.png", search, tried)
    tables = _tables(search, records, tried, final)
    if said := advice(search, tried, final, effects):
        tables = f"{said}\n\n{tables}"
    (folder / "report.md").write_text(_markdown(search, folder, records, finals, tables))
    return tables


def _summary(records: Records, best: dict[int, Configuration]) -> dict[str, Any]:
    """Return what a finished trial says of what all of them are compared with."""
    summary = records.summary(next(iter(best.values())).trials[0].index)
    assert summary is not None, "the best has finished"
    return summary


def _rows(search: Search, records: Records, tried: list[Configuration]) -> list[dict[str, Any]]:
    """Return one row a trial; what depends on the machine comes last."""
    done = [one for one in tried if one.state == "done"]
    front = pareto_front([(one.num_steps, one.validation.mean) for one in done])
    on_front = {one.number for one, is_on in zip(done, front, strict=True) if is_on}
    return [
        {
            "trial": record.index,
            "configuration": one.number,
            "seed": record.seed,
            "state": record.state,
            "num_steps": one.num_steps,
            "validation": validation(search, record),
            "mean": one.validation.mean,
            "error_of_mean": one.validation.error,
            "pareto": one.number in on_front,
            "preset": one.is_own,
            "percent": record.percent,
            **_without_steps(record.values),
            **_of_its_run(records, record),
        }
        for one in tried
        for record in one.trials
    ]


def _final_rows(final: list[Result], finals: Records) -> list[dict[str, Any]]:
    """Return one row a trial that was trained again, with every distance to held-out data."""
    rows = []
    for result in final:
        for record in result.records:
            summary = finals.summary(record.index) or {"final": {}, "before": {}}
            before = {f"{name}_before": value for name, value in summary["before"].items()}
            rows.append(
                {
                    "trial": record.index,
                    "seed": record.seed,
                    "state": record.state,
                    "num_steps": result.contender.num_steps,
                    "winner": result.contender.is_winner,
                    "preset": result.contender.is_own,
                    **_without_steps(record.values),
                    **summary["final"],
                    **before,
                    **_of_its_run(finals, record),
                }
            )
    return rows


def _effect_rows(found: Sensitivity) -> list[dict[str, Any]]:
    """Return one row for each number of steps, key and value."""
    return [
        {
            "num_steps": effect.num_steps,
            "key": effect.key,
            "value": value,
            "mean": mean,
            "low": low,
            "high": high,
            "as_good": is_good,
        }
        for effect in found.effects
        for value, mean, low, high, is_good in zip(
            effect.values, effect.means, effect.low, effect.high, effect.as_good, strict=True
        )
    ]


def _seconds(records: Records, tried: list[Configuration]) -> dict[int, tuple[float, float]]:
    """By finished configuration, what a training took, and 1,000 samples; means over its seeds."""
    found = {}
    for one in tried:
        if one.state == "done":
            summaries = [s for r in one.trials if (s := records.summary(r.index)) is not None]
            found[one.number] = (
                statistics.fmean(s["wall_seconds"]["total"] for s in summaries),
                1000.0 * statistics.fmean(s["seconds_per_sample"] for s in summaries),
            )
    return found


def _of_its_run(records: Records, record: Record) -> dict[str, Any]:
    summary = records.summary(record.index) if record.state == "done" else None
    return {
        "policy_sha256": summary and summary["policy_sha256"],
        "error": record.error,
        "seconds_per_sample": summary and summary["seconds_per_sample"],
        "seconds": summary and summary["wall_seconds"]["total"],
        "attempts": record.attempts,
    }


def _without_steps(values: Values) -> Values:
    return {key: value for key, value in values.items() if key != STEPS}


def _tables(
    search: Search, records: Records, tried: list[Configuration], final: list[Result]
) -> str:
    best = best_by_steps(tried)
    if not best:
        return "No trial has finished."
    text = _best_table(search, records, tried, best)
    if final:
        text = f"{_final_table(search, final, _summary(records, best)['full_step'])}\n\n{text}"
    return text


def _final_table(search: Search, final: list[Result], full_step: dict[str, Any]) -> str:
    own = {r.contender.num_steps: r for r in final if r.contender.is_own}
    objective, seeds, beside = search.objective, final_seeds(search), ""
    if "nfe" in full_step:
        beside = f" Without cutting steps ({full_step['nfe']}): {objective.of(full_step):.4f}."
    if objective.is_leading:
        floor = full_step["noise_floor"]
        beside += f" Real data: {'too few to say' if floor is None else f'{floor:.4f}'}."
    lines = [
        "## On held-out data",
        "",
        f"Winners of the search and the preset's own, trained again with seeds {seeds[0]} to "
        f"{seeds[-1]}: {objective.name} to held-out data, mean ± standard error over the seeds; "
        f"of what no seed changes, the error of the measurement. Less is better.{beside}",
        "",
        "| steps | winner | the preset's own | not fine-tuned | verdict |",
        "|--:|--:|--:|--:|:--|",
    ]
    for result in final:
        if result.contender.is_winner:
            other = own[result.contender.num_steps]
            cells = (result.held_out, other.held_out, result.before)
            shown = " | ".join("" if math.isnan(cell.mean) else str(cell) for cell in cells)
            words = verdict(result, other)
            lines.append(f"| {result.contender.num_steps} | {shown} | {words} |")
    lines += ["", f"Better and worse: intervals of {WIDTH:.0f} standard errors do not overlap."]
    return "\n".join(lines)


def _best_table(
    search: Search,
    records: Records,
    tried: list[Configuration],
    best: dict[int, Configuration],
) -> str:
    seeds = "one seed, so no error is known" if search.seeds == 1 else "mean ± standard error"
    own = {o.num_steps: o.validation for o in tried if o.is_own and o.state == "done"}
    front = pareto_front([(steps, one.validation.mean) for steps, one in best.items()])
    lines = [
        "## The search",
        "",
        f"The best of each number of steps: {search.objective.name} to validation data ({seeds}).",
        "",
        "| steps | best | the preset's own | Pareto | of | s / 1000 samples | settings |",
        "|--:|--:|--:|:-:|--:|--:|:--|",
    ]
    for (steps, one), is_on in zip(best.items(), front, strict=True):
        summary = records.summary(one.trials[0].index)
        assert summary is not None, "the best has finished"
        settings = show_values(_without_steps(one.values))
        after, before = measured(search.objective, one.trials, records)
        if after.mean > before.mean:
            settings += " **worse than not fine-tuned**"
        cells = (
            steps,
            one.validation,
            own.get(steps, ""),
            "yes" if is_on else "",
            one.label,
            f"{1000 * summary['seconds_per_sample']:.3g}",
            settings,
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _markdown(search: Search, folder: Path, records: Records, finals: Records, tables: str) -> str:
    counts = Counter(record.state for record in records.all())
    shown = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    each = "" if search.seeds == 1 else f", {search.seeds} seeds each"
    text = f"""# {search.preset}: search over {search.space.name}

{search.num_trials} configurations{each}, with seed {search.seed}, searcher {search.searcher}, \
scheduler {search.scheduler}: trials {shown}. Settings of every trial: \
{" ".join(search.settings) or "the preset's own"}.

{tables}

{_notes(search, folder)}
"""
    pictures = [f"![{what}]({name})" for name, what in PICTURES.items() if (folder / name).exists()]
    text += "".join(f"\n{picture}\n" for picture in pictures)
    failed = [
        f"- {trials.folder.name}/{record.index:03d}: {record.error}\n"
        for trials in (records, finals)
        for record in trials.all()
        if record.state == "failed"
    ]
    if failed:
        text += "\n## Failed\n\n" + "".join(failed)
    return text


def _notes(search: Search, folder: Path) -> str:
    """Say what the tables mean, and which files there are."""
    notes = []
    if best := sorted(folder.glob("best-T*.yaml")):
        notes.append(
            "Pareto: nothing with as many or fewer steps is better. The preset's own: its values "
            "of all that is searched, at the same steps."
        )
        if not (folder / "final.csv").exists():
            notes.append(
                "No winner was trained again, so nothing here is measured on held-out data: the "
                "validation of the best of many flatters it."
            )
        if search.scheduler == "pbt":
            notes.append(
                f"Rates changed while the trials ran: `{best[0].name}` holds the last ones and "
                "does not give the same sampler again; that is in the trial's checkpoints."
            )
        else:
            notes.append(
                f"`sft-rl train --config {best[0].name}` gives the sampler of the best's first "
                "trial again, with the same `policy_sha256`."
            )
    notes.append("All trials are in results.csv.")
    if (folder / "sensitivity.csv").exists():
        notes.append(
            "What each key does is in sensitivity.csv: expected distances, the other keys averaged "
            "over what was tried, with intervals of two standard errors."
        )
    if (folder / "final.csv").exists():
        notes.append("Those of the winners are in final.csv, with every distance.")
    return "\n\n".join(notes)
