"""Imports run one way: entry points, then `models` and `data`, which know nothing of each other, then `utils`."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

FORBIDDEN = {"utils": {"models", "data"}, "data": {"models"}, "models": {"data"}}
ENTRY_POINTS = {path.stem for path in ROOT.glob("*.py")}
MODULES = sorted(path.relative_to(ROOT) for folder in FORBIDDEN for path in (ROOT / folder).rglob("*.py"))
TRAINING_ONLY = ["lightning", "torchmetrics", "comet_ml", "pyctcdecode", "kenlm", "espeakng_loader"]


def imported(source: str) -> set[str]:
    """The top-level packages that a module imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0] if not node.level else "." * node.level)
    return found


def test_imports_are_found_wherever_they_stand():
    source = "import a.b, c as d\ndef f():\n    from e.f import g\n    if g:\n        from . import h\n"
    assert imported(source) == {"a", "c", "e", "."}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_run_one_way(module):
    found = imported((ROOT / module).read_text(encoding="utf-8"))
    assert not found & FORBIDDEN[module.parts[0]]
    assert not found & ENTRY_POINTS, "a recipe is imported by nothing but tests"
    assert not any(name.startswith(".") for name in found), "a relative import would escape this test"


def test_only_entry_points_join_models_and_data():
    joining = {path.relative_to(ROOT) for path in [*ROOT.glob("*.py"), *map(ROOT.joinpath, MODULES)]
               if imported(path.read_text(encoding="utf-8")) >= {"models", "data"}}
    assert Path("train.py") in joining
    assert all(len(path.parts) == 1 for path in joining)


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for path in [*(path.relative_to(ROOT) for path in ROOT.glob("*.py")), *MODULES]}


@cache
def imported_modules(name: str) -> frozenset[str]:
    """The project's own modules that one of them imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / FILES[name]).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= members & FILES.keys() or {node.module}
    return frozenset(found & FILES.keys() - {name})


@cache
def longest_chain(name: str) -> tuple[str, ...]:
    """A module of `utils`, one that it imports, one that that imports, and so on, as far down as it goes."""
    return name, *max(map(longest_chain, imported_modules(name)), key=len, default=())


def test_no_imports_in_a_circle():
    order = TopologicalSorter({name: imported_modules(name) for name in FILES}).static_order()  # or CycleError
    assert len(list(order)) == len(FILES)


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("utils")])
def test_utils_has_at_most_four_floors(name):
    assert len(longest_chain(name)) <= 4, " -> ".join(longest_chain(name))


def test_inference_loads_nothing_of_training():
    program = f"import sys, inference; print([name for name in {TRAINING_ONLY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (result.stdout, result.returncode) == ("[]\n", 0), result.stderr
