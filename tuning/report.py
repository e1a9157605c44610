"""The answer of a search: how few steps can be afforded, and with which settings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from sft_rl.config.files import dump_config, load_config_file
from tuning.plots import plot_curves, plot_parallel, plot_pareto
from tuning.progress import show_values
from tuning.records import Record, Records
from tuning.search import STEPS, Search, pareto_front

TIMING = ("attempts", "seconds_per_sample", "seconds")
"""Columns that differ between two runs of the same search; they come last."""


def write_report(search: Search, folder: Path, records: Records) -> str:
    """Write tables, pictures and the best configurations into a search's folder.

    Returns:
        The table of the best by number of steps, as Markdown.
    """
    results = results_table(search, records)
    results.to_csv(folder / "results.csv", index=False)
    best = best_by_steps(results)
    for old in folder.glob("best-T*.yaml"):
        old.unlink()
    for row in best.to_dict("records"):
        config = load_config_file(str(records.run_folder(int(row["trial"])) / "config.yaml"))
        (folder / f"best-T{int(row['num_steps'])}.yaml").write_text(dump_config(config))
    table = _best_table(search, best, results)
    if len(best):
        plot_pareto(folder / "pareto.png", results, best, search.metric)
        plot_parallel(folder / "parallel.png", results, search)
    plot_curves(folder / "curves.png", records.all(), results)
    (folder / "report.md").write_text(_markdown(search, results, table))
    return table


def results_table(search: Search, records: Records) -> pd.DataFrame:
    """Return one row a trial; what depends on the machine comes last."""
    rows = [_row(search, records, record) for record in records.all()]
    done = [i for i, row in enumerate(rows) if row["state"] == "done"]
    points = [(int(rows[i]["num_steps"]), float(rows[i]["distance"])) for i in done]
    for i, on_front in zip(done, pareto_front(points), strict=True):
        rows[i]["pareto"] = on_front
    return pd.DataFrame(rows)


def _row(search: Search, records: Records, record: Record) -> dict[str, Any]:
    summary = records.summary(record.index) if record.state == "done" else None
    row: dict[str, Any] = {
        "trial": record.index,
        "state": record.state,
        "num_steps": search.config(record.values).sampler.num_steps,
        "distance": records.quality(record.index, search.metric),
        "pareto": False,
        "default": search.scheduler != "pbt" and search.is_default(record.index),
        "percent": record.percent,
    }
    row |= record.values if STEPS not in record.values else _without_steps(record.values)
    names = ("initial", "full_step", "noise_floor", "policy_sha256", *TIMING)
    row |= dict.fromkeys((*search.metrics, *names))
    if summary is not None:
        metric = search.metric
        floors = summary["full_step"]["noise_floors"]
        row |= summary["final"] | {
            "initial": summary.get(f"{metric}_initial"),  # of the leading distance
            "full_step": summary["full_step"][metric],
            "noise_floor": floors.get(metric, math.nan),
            "policy_sha256": summary["policy_sha256"],
            "seconds_per_sample": summary["seconds_per_sample"],
            "seconds": summary["wall_seconds"]["total"],
        }
    row["error"] = record.error
    timing = {name: row.pop(name) for name in TIMING}
    return row | timing | {"attempts": record.attempts}


def _without_steps(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != STEPS}


def best_by_steps(results: pd.DataFrame) -> pd.DataFrame:
    """Return the best finished trial of each number of steps; the first one of equals."""
    if results.empty:
        return results
    done = results[results["state"] == "done"]
    return done.sort_values(["num_steps", "distance", "trial"]).drop_duplicates("num_steps")


def _best_table(search: Search, best: pd.DataFrame, results: pd.DataFrame) -> str:
    if best.empty:
        return "No trial has finished."
    keys = [key for key in search.space.distributions if key != STEPS]
    defaults = results[results["default"] & (results["state"] == "done")]
    default = dict(zip(defaults["num_steps"], defaults["distance"], strict=True))
    lines = [
        "| steps | distance | the preset's own | not fine-tuned | noise floor | "
        "seconds per 1000 samples | Pareto | trial | settings |",
        "|--:|--:|--:|--:|--:|--:|:-:|--:|:--|",
    ]
    for row in best.to_dict("records"):
        steps = row["num_steps"]
        before = f"{row['initial']:.4f}" if row["initial"] is not None else ""
        own = f"{default[steps]:.4f}" if steps in default else ""
        lines.append(
            f"| {steps} | {row['distance']:.4f} | {own} | {before} | "
            f"{_floor(row)} | {1000 * row['seconds_per_sample']:.3g} "
            f"| {'yes' if row['pareto'] else ''} | {row['trial']} | "
            f"{show_values({key: row[key] for key in keys})} |"
        )
    return "\n".join(lines)


def _floor(row: Any) -> str:
    """The noise floor, if there are as many real samples as it needs."""
    return "unknown" if math.isnan(row["noise_floor"]) else f"{row['noise_floor']:.4f}"


def _markdown(search: Search, results: pd.DataFrame, table: str) -> str:
    states = results["state"].value_counts().to_dict() if len(results) else {}
    counts = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    text = f"""# {search.preset}: search over {search.space.name}

{search.num_trials} trials with seed {search.seed}, searcher {search.searcher}, scheduler \
{search.scheduler}: {counts}. Settings of every trial: \
{" ".join(search.settings) or "the preset's own"}.

Distance is {search.metric} to held-out data at the trial's number of steps (NFE), below is better.

## Best for each number of steps

{table}

"Pareto": no sampler with as many or fewer steps is better. "The preset's own": the same steps
with the preset's values.

![distance against steps](pareto.png)

![learning curves](curves.png)

![parallel coordinates](parallel.png)

"""
    if len(results) and (results["state"] == "done").any():
        full = results[results["state"] == "done"].iloc[0]
        text += (
            f"The full-step sampler reaches {full['full_step']:.4f}, "
            f"the noise floor is {_floor(full)}.\n\n"
        )
    text += _how_to(search)
    failed = results[results["state"] == "failed"] if len(results) else results
    if len(failed):
        text += "\n## Failed\n\n"
        text += "".join(f"- trial {r['trial']}: {r['error']}\n" for r in failed.to_dict("records"))
    return text


def _how_to(search: Search) -> str:
    if search.scheduler == "pbt":
        return (
            "Rates changed while the trials ran, so `best-T*.yaml` holds the last ones and does "
            "not give the same sampler again; that is in the trial's checkpoints.\n"
        )
    return (
        "`sft-rl train --config best-T4.yaml` gives the best 4-step sampler again, with the same "
        "`policy_sha256`. All trials are in results.csv.\n"
    )
