"""What docs, hooks and workflow tell people and machines to run exists."""

import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sft_rl.cli import _parse
from sft_rl.config.files import parse_overrides, preset_names

ROOT = Path(__file__).parents[1]
PAGES = {
    str(p.relative_to(ROOT)): p.read_text() for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
}


def blocks(page: str) -> Iterator[str]:
    """Yield the lines of a page's shell blocks, continued ones joined, without comments."""
    for block in re.findall(r"^```(?:sh|bash)\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()


def commands(page: str) -> list[list[str]]:
    lines = (shlex.split(line, comments=True) for line in blocks(page) if "sft-rl " in line)
    return [words[1:] for words in lines if words[:1] == ["sft-rl"]]


def extras() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return set(project["optional-dependencies"])


def test_every_extra_that_is_named_exists():
    sources = [p.read_text() for p in ROOT.glob("*/**/*.py") if ".venv" not in p.parts]
    named = re.findall(r"sft-rl\[([a-z0-9, -]+)\]", "\n".join([*PAGES.values(), *sources]))
    assert {"fid", "wandb", "mlflow", "integrations"} <= {*named}
    assert {name.strip() for names in named for name in names.split(",")} <= extras()


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_every_command_is_understood(page: str):
    for words in commands(page):
        args = _parse(words)
        if words[0] == "submit":
            args = _parse(words[words.index("--") + 1 :])
        if hasattr(args, "preset"):
            parse_overrides(getattr(args, "settings", []))
            assert args.preset in (None, *preset_names()), words


def test_every_command_in_a_sentence_exists():
    text = "\n".join(PAGES.values())
    named = set(re.findall(r"`sft-rl ([a-z]+)", text))
    assert {"train", "tune", "doctor"} <= named
    for name in named:
        with pytest.raises(SystemExit) as done:
            _parse([name, "--help"])
        assert done.value.code == 0


def test_every_target_and_module_exists():
    text = "\n".join(PAGES.values())
    shell = "\n".join(line for page in PAGES for line in blocks(page))
    targets = set(re.findall(r"^make ([a-z-]+)", shell, re.MULTILINE))
    targets |= set(re.findall(r"`make ([a-z-]+)", text))
    assert {"demo", "test"} <= targets
    assert targets <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    modules = set(re.findall(r"python -m (benchmarks[.a-z_]+)", text))
    assert modules
    for name in modules:
        assert (ROOT / name.replace(".", "/")).with_suffix(".py").is_file(), name


def test_the_workflow_and_the_hooks_run_what_is_there():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    runs = [step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step]
    assert runs == [".ci/run"]
    assert os.access(ROOT / runs[0], os.X_OK)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    entries = {Path(hook["entry"].split()[0]).name for hook in hooks}
    linters = re.findall(r"\$\(BIN\)/(\S+)", (ROOT / "Makefile").read_text())
    assert entries == {"ruff", "mypy", "lint-imports"} <= set(linters)
