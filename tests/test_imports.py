"""Who imports whom: the method runs without Ray, the command line starts without torch."""

import ast
import resource
import subprocess
import sys
from pathlib import Path

from processes import PROCESSES, SERVER

import sft_rl
from sft_rl.cli import main

PACKAGES = ("sft_rl", "envs", "tuning", "cluster")
ABSENT = {
    "sft_rl.config.files": ["ray", "torch"],
    "sft_rl.distributed.board": ["ray", "torch"],
    "sft_rl.jobs.fine_tuning": ["ray", "tensorboardX", "matplotlib", "sklearn", "pandas"],
    "sft_rl.export.pipeline": ["ray", "diffusers.pipelines.stable_diffusion"],
}
"""Modules of ours, the lightest first, and what each leaves out."""


def test_what_an_import_leaves_out():
    """And it says nothing, whatever the packages behind it have to say."""
    code = f"""
import importlib, sys
for module, absent in {ABSENT!r}.items():
    importlib.import_module(module)
    print(module, [m for m in absent if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{module} []" for module in ABSENT]
    assert done.stderr == ""


def imported_by(file: Path, command: list[str]) -> None:
    """Be `sft-rl` with some arguments; what is imported then goes to a file."""
    code = main(command)
    file.write_text("\n".join(sys.modules))
    sys.exit(code)


@PROCESSES
def test_a_run_leaves_out_what_torch_compiles_with(tmp_path: Path, tiny_settings: tuple[str, ...]):
    """It takes longer to import than many a run; optimisers and "meta" tensors ask for it."""
    said = tmp_path / "modules"
    command = ["train", "swiss_roll", *tiny_settings, "pretraining.optimizer=rmsprop"]
    command += ["model.num_fourier=2", "--out", str(tmp_path / "run")]
    process = SERVER.Process(target=imported_by, args=(said, command))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert {"torch._dynamo", "sympy", "ray"}.isdisjoint(said.read_text().splitlines())


def annotated(file: Path) -> set[str]:
    """Names in the annotations of a file's arguments, attributes and results."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.arg | ast.AnnAssign):
            given = node.annotation
        elif isinstance(node, ast.FunctionDef):
            given = node.returns
        else:
            continue
        names = ast.walk(given) if given else ()
        found |= {name.id for name in names if isinstance(name, ast.Name)}
    return found


def test_few_know_a_configuration_as_a_whole():
    """What is built gets the sections that it is built from."""
    root = Path(sft_rl.__file__).parent.parent
    files = (f.relative_to(root) for name in PACKAGES for f in (root / name).rglob("*.py"))
    knowing = {str(f): annotated(root / f) for f in files if "config" not in f.parts}
    whole = sorted(f for f, names in knowing.items() if "Config" in names)
    resolved = sorted(f for f, names in knowing.items() if "ResolvedConfig" in names)
    assert "sft_rl/runs/resolve.py" in whole and "sft_rl/runs/folder.py" in resolved
    assert len(whole) <= 10, whole
    assert len({*whole, *resolved}) <= 16, resolved


HEAVY = ("ray", "torch", "numpy", "pandas", "pydantic", "yaml", "matplotlib", "rich", "gymnasium")


def test_help_is_there_at_once():
    """In seconds of the processor, the best of three; and nothing heavy in it."""
    command = [sys.executable, "-X", "importtime", "-m", "sft_rl", "--help"]
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert {"argparse", "tuning", "cluster"} <= imported
    assert imported.isdisjoint(HEAVY)
    for name in ("train", "tune", "submit", "doctor"):
        assert name in done.stdout
    assert min(seconds) < 0.5
