"""The import contracts name every module and package: what is new is not left out of them."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KNOWS_RAY = {"sft_rl.distributed", "tuning", "cluster"}


def houses() -> set[str]:
    """Everything at the top of `sft_rl`, and the packages beside it."""
    inside = {
        f"sft_rl.{path.stem}"
        for path in (ROOT / "sft_rl").iterdir()
        if path.suffix == ".py" or (path.is_dir() and list(path.glob("*.py")))
    }
    return inside - {"sft_rl.__init__"} | {"envs", "tuning", "cluster"}


@pytest.fixture
def contracts() -> dict[str, dict[str, list[str]]]:
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert set(linter["root_packages"]) == {"sft_rl", "envs", "tuning", "cluster"}
    return {contract["type"]: contract for contract in linter["contracts"]}


def test_one_contract_orders_them_all(contracts: dict[str, dict[str, list[str]]]):
    named = [name.strip() for layer in contracts["layers"]["layers"] for name in layer.split("|")]
    assert sorted(named) == sorted(houses())


def test_only_three_know_ray(contracts: dict[str, dict[str, list[str]]]):
    assert contracts["forbidden"]["forbidden_modules"] == ["ray"]
    assert set(contracts["forbidden"]["source_modules"]) == houses() - KNOWS_RAY


def test_every_package_has_its_init():
    """A folder without one is a package to Python, but linters and builds may pass it by."""
    folders = {
        path.parent for name in houses() for path in ROOT.glob(f"{name.split('.')[0]}/**/*.py")
    }
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []
