"""What a search leaves for people to read, from trials made up here."""

import math
import re
from pathlib import Path

import pandas as pd
import pytest
from made_up import RATE, fail, finish, make

from tuning.cli import conclude
from tuning.final import final_trials
from tuning.folder import SearchFolder
from tuning.records import Record, Records
from tuning.report import write_report
from tuning.search import STEPS, Search


def searched(folder: Path, **options: object) -> tuple[Search, Records, Records]:
    """Two configurations at 2 and at 4 steps, all done."""
    search = make(num_trials=4, **options)
    records, finals = SearchFolder(folder).records()
    for index in range(search.num_runs):
        values = search.planned(index // search.seeds)
        finish(search, records, index, values, validation=0.8 - 0.01 * index)
    return search, records, finals


def named_files(folder: Path) -> set[str]:
    text = (folder / "report.md").read_text()
    return set(re.findall(r"[\w-]+\.(?:png|csv|yaml)", text))


def check_names(folder: Path) -> None:
    assert named_files(folder) <= {file.name for file in folder.iterdir()}


def test_a_whole_search_is_told_with_errors_and_verdicts(tmp_path: Path):
    search, records, finals = searched(tmp_path, seeds=2, final_seeds=2)
    for trial in final_trials(search, records, finals):
        own = trial["values"] == search.own(trial["values"][STEPS])
        finish(
            search, finals, trial["index"], trial["values"], seed=trial["seed"], validation=0.8,
            held_out=(0.7 if own else 0.6) + 0.001 * trial["seed"],
        )  # fmt: skip
    assert conclude(search, SearchFolder(tmp_path), records, finals) == 0
    text = (tmp_path / "report.md").read_text()
    assert "| 2 | 0.6025 ± 0.0005 | 0.7025 ± 0.0005 | 0.9000 ± 0.0040 | better" in text
    assert "| 4 | 0.7350 ± 0.0050 | 0.7750 ± 0.0050 |" in text
    assert "(1000): 0.5500. Real data: 0.5000" in text
    expected = {"pareto.png", "cost.png", "curves.png", "parallel.png", "results.csv", "final.csv"}
    assert named_files(tmp_path) == {*expected, "best-T2.yaml"}
    check_names(tmp_path)
    results, final = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("results", "final"))
    assert list(results["configuration"]) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert list(results["preset"]) == [True] * 4 + [False] * 4
    assert list(results["seed"]) == [0, 1] * 4
    assert not {search.objective.name, "excess"} & set(results.columns)  # nothing of held-out data
    assert list(final["seed"]) == [2, 3] * 4
    assert list(final["winner"] != final["preset"]) == [True] * 8
    assert final["excess"].notna().all()


def test_enough_configurations_say_what_each_key_does(tmp_path: Path):
    search, (records, finals) = make(num_trials=12), SearchFolder(tmp_path).records()
    for index in range(12):
        values = search.planned(index)
        apart = abs(math.log10(values[RATE] / 1e-3))
        finish(search, records, index, values, validation=0.02 * (1.0 + apart) / values[STEPS])
    text = write_report(search, tmp_path, records, finals)
    assert text.startswith("## Advice")
    assert f"take {RATE}" in text
    assert {"sensitivity.png", "sensitivity.csv", "cost.png"} <= named_files(tmp_path)
    check_names(tmp_path)
    effects = pd.read_csv(tmp_path / "sensitivity.csv")
    assert set(effects["num_steps"]) == {2, 4}
    assert (effects["low"] <= effects["high"]).all()


def test_without_final_seeds_no_held_out_number_is_told(tmp_path: Path):
    search, records, finals = searched(tmp_path)
    for index in range(4):
        finish(search, records, index, search.planned(index), validation=0.8, held_out=0.95)
    text = write_report(search, tmp_path, records, finals)
    assert text.count("worse than not fine-tuned") == 2
    assert "0.95" not in (tmp_path / "report.md").read_text()
    assert "No winner was trained again" in (tmp_path / "report.md").read_text()
    assert "one seed, so no error is known" in text
    check_names(tmp_path)


def test_a_search_whose_trials_all_failed_says_so_and_names_no_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    search, records, finals = searched(tmp_path, final_seeds=2)
    write_report(search, tmp_path, records, finals)
    for index in range(4):
        fail(search, records, index, search.planned(index))
    assert conclude(search, SearchFolder(tmp_path), records, finals) == 1
    said = "sft-rl: all 4 trials failed, the first: training stopped: a collapse\n"
    assert capsys.readouterr().err == said
    assert named_files(tmp_path) == {"results.csv"}
    files = {file.name for file in tmp_path.iterdir()}
    assert files == {"results.csv", "report.md", "trials", "final"} & files


def test_an_interrupted_search_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    search, records, finals = make(final_seeds=2), *SearchFolder(tmp_path).records()
    records.put(Record(0, {STEPS: 2, RATE: 1e-4}, seed=0, state="running", curve=((5, 0.9),)))
    assert conclude(search, SearchFolder(tmp_path), records, finals) == 130
    assert "4 trials are not finished; go on with: sft-rl tune --resume" in capsys.readouterr().err
    assert named_files(tmp_path) == {"results.csv", "curves.png"}
    check_names(tmp_path)
