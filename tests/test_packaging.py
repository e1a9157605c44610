"""What others install: a wheel, and a checkout in place, in a fresh environment."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("sft_rl", "envs", "tuning", "cluster")
NEIGHBOURS = PACKAGES[1:]

Run = Callable[..., subprocess.CompletedProcess[str]]


def pip(*words: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of all that a build reads, without what older builds left behind."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="session")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", out, checkout)
    (file,) = out.glob("*.whl")
    return file


def environment(folder: Path) -> Path:
    """Make an environment that has this one's dependencies, but not its sft-rl; return its Python.

    A path in a .pth file is searched, while the .pth files in it, such as that of an install in
    place, are not run.
    """
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    dependencies = sysconfig.get_path("purelib")
    (Path(own.stdout.strip()) / "dependencies.pth").write_text(f"{dependencies}\n")
    return python


def runner(python: Path, folder: Path) -> Run:
    """Runs that environment's Python, or a script beside it, in a foreign folder."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    def run(
        *words: object, script: str = "python", cwd: Path = folder, **env: object
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python.parent / script, *map(str, words)],
            cwd=cwd,
            env=clean | {name: str(value) for name, value in env.items()},
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture(scope="session")
def in_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    python = environment(tmp_path_factory.mktemp("from-wheel"))
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    return runner(python, tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="session")
def in_place(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    python = environment(tmp_path_factory.mktemp("in-place"))
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    pip("--python", python, "install", *offline, "--editable", checkout)
    return runner(python, tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(params=["in_wheel", "in_place"])
def installed(request: pytest.FixtureRequest) -> Run:
    return request.getfixturevalue(request.param)


def test_the_wheel_holds_all_code_and_data_and_nothing_else(wheel: Path, checkout: Path):
    expected = {
        str(file.relative_to(checkout))
        for name in PACKAGES
        for file in (checkout / name).rglob("*")
        if file.suffix in (".py", ".yaml", ".j2", ".json", ".typed")
    }
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {f"{name}/py.typed" for name in PACKAGES} <= held


def test_every_package_is_typed_for_those_who_install_it(in_wheel: Run, tmp_path: Path):
    (tmp_path / "theirs.py").write_text("\n".join(f"import {name}" for name in PACKAGES))
    python = in_wheel("-c", "import sys; print(sys.executable)").stdout.strip()
    command = [sys.executable, "-m", "mypy", "--python-executable", python, "--strict"]
    command += ["--follow-imports=skip", "--cache-dir", str(tmp_path / "cache"), "theirs.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("Success"), done.stdout + done.stderr


def test_the_wheel_works_from_a_foreign_folder(in_wheel: Run, tmp_path: Path, tiny_settings):
    code = "import sft_rl, envs, tuning, cluster; print(sft_rl.__file__, sft_rl.__version__)"
    file, version = in_wheel("-c", code).stdout.split()
    assert "from-wheel" in file
    assert in_wheel("--version", script="sft-rl").stdout == f"sft-rl {version}\n"
    presets = in_wheel("presets", script="sft-rl")
    assert "swiss_roll_paper" in presets.stdout, presets.stderr
    search = ("--search", "nonsense", "--num-trials", 1, "--out", tmp_path / "search")
    refused = in_wheel("tune", "swiss_roll", *search, script="sft-rl")
    assert (refused.returncode, "lr_steps" in refused.stderr) == (2, True), refused.stderr
    settings = Path(file).parents[1] / "cluster" / "settings" / "slurm.yaml"
    render = ("cluster", "render", "--settings", settings, "--target", "slurm")
    assert in_wheel(*render, script="sft-rl").stdout.startswith("#!/")
    out = tmp_path / "run"
    done = in_wheel("train", "swiss_roll", *tiny_settings, "--out", out, script="sft-rl")
    assert done.returncode == 0, done.stderr
    assert (out / "summary.json").is_file()


def stranger(folder: Path, name: str, kind: str) -> Path:
    """Write a foreign module or package; return its place."""
    if kind == "module":
        place = folder / f"{name}.py"
        place.write_text("")
        return place
    place = folder / name
    place.mkdir(parents=True)
    (place / ("__init__.py" if kind == "package" else "theirs.py")).write_text("")
    return place


@pytest.mark.parametrize("name", NEIGHBOURS)
@pytest.mark.parametrize("kind", ["package", "module"])
def test_a_stranger_before_ours_is_named(installed: Run, tmp_path: Path, name: str, kind: str):
    place = stranger(tmp_path, name, kind)
    by_path = installed("--help", script="sft-rl", PYTHONPATH=tmp_path)
    by_folder = installed("-m", "sft_rl", "presets", cwd=tmp_path)
    for done in (by_path, by_folder):
        assert done.returncode == 2
        assert done.stderr.startswith(f"sft-rl: {name}: Python finds {place} before sft-rl's own ")
        assert done.stderr.count("\n") == 1
        assert f"/{name}; rename it" in done.stderr


def test_a_folder_without_init_is_named_where_it_wins(in_wheel: Run, in_place: Run, tmp_path: Path):
    """Python prefers a package later on the path to it, but not one that only a finder knows."""
    place = stranger(tmp_path, "envs", "namespace")
    assert in_wheel("--help", script="sft-rl", PYTHONPATH=tmp_path).returncode == 0
    done = in_place("--help", script="sft-rl", PYTHONPATH=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"sft-rl: envs: Python finds {place} before")


@pytest.mark.parametrize("kind", ["package", "module", "namespace"])
def test_strangers_behind_ours_do_no_harm(in_wheel: Run, tmp_path: Path, kind: str):
    for name in NEIGHBOURS:
        stranger(tmp_path, name, kind)
    code = f"import sys; sys.path.append({str(tmp_path)!r}); from sft_rl.cli import main; main()"
    done = in_wheel("-c", code, "--help")
    assert (done.returncode, "submit" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("import envs", "Python finds {place} before"),
        ("import envs; sys.path.remove(folder)", "Python finds {place} before"),
        ("import types; sys.modules['envs'] = types.ModuleType('envs')", "finds <memory> before"),
    ],
)
def test_a_stranger_that_is_imported_already_is_named(
    in_wheel: Run, tmp_path: Path, before: str, words: str
):
    place = stranger(tmp_path, "envs", "package")
    code = f"""
import sys
folder = {str(tmp_path)!r}
sys.path.insert(0, folder)
{before}
from sft_rl.errors import UserError, check_neighbours
try:
    check_neighbours()
except UserError as error:
    print(error)
"""
    assert words.format(place=place) in in_wheel("-c", code).stdout
