"""The documentation: it builds, its links lead somewhere, its code runs."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pytest import MonkeyPatch

import sft_rl
from sft_rl.algorithms import ALGORITHMS
from sft_rl.cli import main

ROOT = Path(__file__).parent.parent
FROM_ELSEWHERE = re.compile(r'<(?:script|img|iframe)[^>]*src="?https?:|<link[^>]*href="?https?:')
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path):
    """Links and anchors of every page, the README's among them, are checked by the build."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {page: page.read_text() for page in tmp_path.rglob("*.html")}
    assert tmp_path / "index.html" in pages
    assert [page for page, text in pages.items() if FROM_ELSEWHERE.search(text)] == []
    formulas = {page.name for page, text in pages.items() if "<math" in text}
    assert {"sft_pg.html", "policy.html"} <= formulas  # of a page, and of a docstring


@pytest.mark.parametrize(
    "page", ["notation", "paper-to-code", *(f"algorithms/{a}" for a in ALGORITHMS)]
)
def test_what_a_page_names_is_in_the_code(page: str):
    """Classes, functions, settings, columns: they are defined, or stand in quotes, somewhere."""
    source = "\n".join(f.read_text() for d in ("sft_rl", "envs") for f in (ROOT / d).rglob("*.py"))
    there = set(re.findall(r"(?:def|class) (\w+)", source))
    there |= set(re.findall(r"^ *(?:self\.)?(\w+)(?=:| =)", source, re.M))
    there |= set(re.findall(r'"(\w+)"', source)) | {"log_prob_drift_K"}
    text = (ROOT / "docs" / f"{page}.md").read_text()
    named = re.findall(r"(?<!\[)`([a-zA-Z_][\w.]*)(?:[\[(=].*?)?`", text)
    parts = {p for name in named if not name.endswith((".py", ".json")) for p in name.split(".")}
    assert sorted(parts - there) == []


@pytest.fixture
def as_a_user(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """In a folder of one's own; the examples are found as from the repository's root."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    "settings",
    [
        ["critic.objective=examples.own_critic:LeastSquaresCritic", "options.width=16"],
        ["reward=examples.own_reward:near_circle"],
    ],
)
def test_the_examples_of_own_parts_train(settings: list[str], tiny_settings: tuple[str, ...]):
    assert main(["train", "swiss_roll", *tiny_settings, *settings, "--out", "run"]) == 0
    assert all(
        setting.partition("=")[2] in Path("run", "config.yaml").read_text() for setting in settings
    )


@pytest.mark.usefixtures("as_a_user")
def test_the_quick_start_runs_from_top_to_bottom(
    monkeypatch: MonkeyPatch, tiny_settings: tuple[str, ...]
):
    """Every block of Python in one process, with its own settings on top of tiny ones."""
    load_config = sft_rl.load_config

    def load_tiny_config(*args: object, overrides: tuple[str, ...] = (), **options: object):
        return load_config(*args, overrides=[*tiny_settings, *overrides], **options)

    monkeypatch.setattr(sft_rl, "load_config", load_tiny_config)
    blocks = PYTHON.findall((ROOT / "docs" / "quick-start.md").read_text())
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/quick-start.md", "exec"), names)
    assert names["result"]


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("tutorial_swiss_roll", {}),
        ("tutorial_own_reward", {}),
        ("own_network", {"num_iterations": 50}),
    ],
)
def test_the_scripts_run(
    script: str,
    options: dict[str, int],
    tiny_settings: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
):
    settings = [s for s in tiny_settings if not s.startswith(("sampler.num_steps", "model."))]
    importlib.import_module(f"examples.{script}").main(*settings, **options)
    assert "distance to " in capsys.readouterr().out
