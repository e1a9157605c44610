"""The benchmark for GPUs runs here, too, at a size that says nothing."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu import main
from benchmarks.gpu_checks import failures


def test_every_part_of_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "gpu.json"
    main(["--tiny", "--minutes", "0", "--out", str(out)])
    content = json.loads(out.read_text())
    assert failures(content["deviations"]) == []
    assert content["glyphs32"]["iterations"] == {"pretraining": 20, "fine-tuning": 4}
    assert content["glyphs32"]["final"]["sliced_wasserstein"] > 0
    assert content["matmul_bfloat16_per_second"] > 0
    # T = 2 steps; an update walks 2 chains twice, for it keeps no activations, and back.
    assert content["operations"]["update"] > 2 * 4 * content["operations"]["sampling"]
    rows = content["rows"]
    assert {name.partition(",")[0] for name in rows} == {"sampling", "update"}
    assert "sampling, and channels last, CUDA graph" in rows
    table = capsys.readouterr().out
    for name, row in rows.items():
        assert f"| {name} |" in table
        assert row["per_second"] > 0
        assert row["share"] > 0
    assert rows["update, float32 loop"]["speedup"] == 1
