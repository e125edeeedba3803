"""Where tests lie: unit, integration and training mirror the source, no test imports a test, and no module is without
one.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import grimp
import pytest
from typer.testing import CliRunner

from flows.cli import app
from tests.support.paths import ROOT

TIERS = ("unit", "integration", "training")
AREAS = {
    "benchmarks": "benchmarks",
    "core": "stages/core",
    "flows": "flows",
    "infra": "infra",
    "lib": "stages/lib",
    "stages": "stages",
}
"""A folder of a tier, and the folder of the source that it mirrors."""
COVERED = ROOT / "tests" / "contract" / "covered_by.toml"
FILES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "tests").rglob("test_*.py"))


def _statements(path: Path) -> Iterator[ast.AST]:
    """All statements of a file, without the expressions in them, which are many times as many."""
    left: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while left:
        node = left.pop()
        yield node
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            left += getattr(node, name, ())


@cache
def imported(path: Path) -> frozenset[str]:
    """Modules that a file imports anywhere; `from a import b` counts as a and as a.b."""
    names: set[str] = set()
    for node in _statements(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def modules() -> dict[str, str]:
    """Modules of the source that hold code, with the path of the test that would bear their name, in any tier.

    A stage's spec.py is tested with its run.py: a declaration does nothing by itself.
    """
    found = {}
    for path in sorted([*(ROOT / "flows").rglob("*.py"), *(ROOT / "stages").rglob("*.py")]):
        if path.name == "__init__.py" or not _holds_code(path):
            continue
        place = path.relative_to(ROOT)
        area = next(a for a, source in AREAS.items() if place.is_relative_to(source))
        folder = Path(area) / place.parent.relative_to(AREAS[area])
        name = "run" if path.name == "spec.py" else path.stem
        found[place.as_posix()] = (folder / f"test_{name}.py").as_posix()
    return found


def _holds_code(path: Path) -> bool:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.If)
    return any(isinstance(node, kinds) for node in ast.parse(path.read_text(encoding="utf-8")).body)


def has_test(source: str, test: str) -> bool:
    """Whether some tier has a test of that name (or `<name>_*.py`), or a test of that folder imports the module
    itself.
    """
    module = source.removesuffix(".py").replace("/", ".")
    files = [p for tier in TIERS for p in (ROOT / "tests" / tier / Path(test).parent).glob("test_*.py")]
    stem = Path(test).stem
    return any(p.stem == stem or p.stem.startswith(f"{stem}_") or module in imported(p) for p in files)


def covered() -> dict[str, dict[str, str]]:
    """The tables of covered_by.toml: `imported`, and `started` for what only runs as a program of its own."""
    return tomllib.loads(COVERED.read_text(encoding="utf-8"))


@cache
def _graph() -> grimp.ImportGraph:
    return grimp.build_graph("flows", "stages", cache_dir=None)


def reaches(test: str, source: str) -> bool:
    """Whether a test imports a module of the source, or something that imports it."""
    target = source.removesuffix(".py").replace("/", ".")
    direct = imported(ROOT / test)
    for support in [name for name in direct if name.startswith("tests.support.")]:
        file = ROOT / f"{support.replace('.', '/')}.py"
        direct |= imported(file) if file.exists() else frozenset()
    graph = _graph()
    return any(
        name == target or (name in graph.modules and graph.chain_exists(name, target, as_packages=False))
        for name in direct
    )


@pytest.mark.parametrize("file", FILES)
def test_no_test_imports_a_test(file: str) -> None:
    shared = ("tests.support", "tests.support.")
    others = [m for m in imported(ROOT / file) if m.split(".")[0] == "tests" and not f"{m}.".startswith(shared[1])]
    assert not [m for m in others if m != "tests"], "what tests share belongs in tests/support"


def test_support_imports_no_test() -> None:
    for path in (ROOT / "tests" / "support").rglob("*.py"):
        assert not [m for m in imported(path) if m.startswith("tests.") and not m.startswith("tests.support")], path


@pytest.mark.parametrize("file", [f for f in FILES if f.split("/")[1] in TIERS])
def test_a_tier_mirrors_the_source(file: str) -> None:
    parts = Path(file).parts[2:-1]
    assert parts, f"{file}: lies in no folder of its tier"
    assert parts[0] in AREAS, f"{file}: there are {', '.join(AREAS)}"
    assert (ROOT / AREAS[parts[0]] / Path(*parts[1:])).is_dir(), f"{file}: mirrors no folder of the source"


def test_every_module_has_a_test_or_says_which_covers_it() -> None:
    """A new module without a test fails here: write tests/unit/<folder>/test_<module>.py."""
    entries = {source for table in covered().values() for source in table}
    untested = {source for source, test in modules().items() if not has_test(source, test)}
    assert sorted(untested - entries) == [], "modules without a test in their folder, and not in covered_by.toml"
    assert sorted(entries - untested) == [], "entries of covered_by.toml that are not needed any more"


def test_what_covers_a_module_reaches_it() -> None:
    tables = covered()
    assert not [test for table in tables.values() for test in table.values() if not (ROOT / test).is_file()]
    assert not {source: test for source, test in tables["imported"].items() if not reaches(test, source)}


def test_the_command_line_starts_without_what_only_some_commands_need() -> None:
    """`moxin --help` and a shell's completion wait for what `flows.cli` imports."""
    code = "import sys, flows.cli; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    brought = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    heavy = {"boto3", "botocore", "jinja2", "numpy", "prefect", "psutil", "pydantic", "rich", "torch"}
    assert not heavy & set(brought.split())


def test_where_nothing_runs_the_stores_client_is_not_imported() -> None:
    """`moxin status` and `moxin down`: boto3 would be half of what they import."""
    code = "import sys, flows.local_services, flows.console; print('boto3' in sys.modules)"
    asked = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert asked.stdout == "False\n"


def test_the_help_says_each_command_whole() -> None:
    """A command's first sentence stands in the list of commands without being cut, on a terminal of 80 columns."""
    for words in ([], ["images"], ["suite"]):
        shown = CliRunner().invoke(app, [*words, "--help"], terminal_width=80)
        assert shown.exit_code == 0
        assert "..." not in shown.output.partition("Commands:")[2]
